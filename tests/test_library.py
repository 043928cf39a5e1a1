"The workflow's own package: what a model needs of it, and where each process imports it from."

import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path
from pkgutil import resolve_name

import pytest
from conftest import free_port

import mlops_nb
from mlops_nb.core import cluster, library
from mlops_nb.core.errors import SettingsError
from mlops_nb.core.settings import create
from mlops_nb.science.model_files import OWN_TYPES, is_allowed

ROOT = Path(__file__).parent.parent


# The package that is named


@pytest.mark.parametrize(
    ("package", "says"),
    [
        ("shop", "expected modules in .*shop, and there is no such folder; export the notebooks"),
        ("mlops_nb.shop", "expected modules in .*mlops_nb/shop, and there is no such folder"),
        ("hollow", "expected modules in .*hollow, and it has no modules"),
        (
            "mlops_nb",
            "is the framework itself: expected the package that your notebooks export to, such as "
            "mlops_nb.churn",
        ),
    ],
)
def test_a_package_that_is_not_there_is_a_settings_error(tmp_path, package, says):
    settings = create(tmp_path / "w", workspace={"package": package})
    (settings.root / "hollow").mkdir()
    with pytest.raises(
        SettingsError, match=rf"settings.ini: \[workspace\] package = {package}.* ?{says}"
    ):
        cluster.snapshot(settings)
    with pytest.raises(SettingsError):
        cluster.runtime_env(settings)
    assert not settings.state.exists()


@pytest.mark.parametrize(
    ("package", "says"),
    [
        *(
            (
                p,
                "cannot be a workflow's package: expected one name, such as shop, or one inside "
                "mlops_nb",
            )
            for p in (
                "shop.ml",
                "mlops_nb.churn.deep",
                "shop-x",
                "../shop",
                "shop.",
                ".shop",
                "class",
                "1shop",
            )
        ),
        ("json", "is a part of Python: expected another name"),
        ("mlops_nb.core", "is a part of the framework"),
        ("mlops_nb.templates", "is a part of the framework"),
    ],
)
def test_a_name_that_no_package_of_a_workflow_can_have(tmp_path, package, says):
    "Even if there are modules: under such a name processes would import something else."
    settings = create(tmp_path / "w", workspace={"package": package})
    folder = library.package_folder(settings.root, package)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text("")
    with pytest.raises(SettingsError, match=rf"package = {package} {says}"):
        cluster.snapshot(settings)


def test_the_framework_names_its_own_folders():
    own = {
        p.name
        for p in (ROOT / "mlops_nb").iterdir()
        if p.is_dir() and p.name not in ("__pycache__", "churn")
    }
    assert (
        own
        and all(library.package_problem(f"mlops_nb.{name}") for name in own)
        and not library.package_problem("mlops_nb.churn")
    )


def test_an_import_from_above_the_package_is_left_to_the_import(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").write_text("")
    (tmp_path / "shop/a.py").write_text("from .. import x\nfrom . import b")
    (tmp_path / "shop/b.py").write_text("")
    assert list(library.imported_modules([library.parse("import shop.a")], tmp_path / "shop")) == [
        "shop",
        "shop.a",
        "shop.b",
    ]


def test_a_snapshot_holds_the_package_and_nothing_of_the_framework(tmp_path):
    settings = create(tmp_path / "w", workspace={"package": "mlops_nb.churn"})
    shutil.copytree(ROOT / "mlops_nb" / "churn", settings.root / "mlops_nb" / "churn")
    (settings.root / "mlops_nb" / "__init__.py").write_text("")
    folder = cluster.snapshot(settings)
    expected = {
        p.relative_to(settings.root) for p in (settings.root / "mlops_nb" / "churn").rglob("*.py")
    }
    assert {p.relative_to(folder) for p in folder.rglob("*.py")} == expected
    env = cluster.runtime_env(settings)["env_vars"]
    assert env["MLOPS_NB_PLACE"] == f"mlops_nb.churn={folder}" and "PYTHONPATH" not in env


# What a model needs of it


def test_the_reference_model_needs_only_the_modules_of_its_features():
    "An edit of what the monitor notebook exports changes no model's library."
    names = ["mlops_nb.churn.train.features", "sklearn.pipeline.Pipeline"]
    files = library.defining_modules(names, ROOT, "mlops_nb.churn")
    assert [f.relative_to(ROOT).as_posix() for f in files] == [
        "mlops_nb/churn/__init__.py",
        "mlops_nb/churn/train.py",
    ]


# The framework


@pytest.fixture
def fake_framework(tmp_path, monkeypatch):
    "A framework of one module, with the reference workflow in it."
    home = tmp_path / "mlops_nb"
    for name in ("__init__", "_modidx", "core/events", "churn/train", "shop/train"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / f"{name}.py").write_text("x = 1")
    monkeypatch.setattr(mlops_nb, "__file__", str(home / "__init__.py"))
    return home


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("core/events", True),
        ("__init__", True),
        ("_modidx", False),
        ("churn/train", False),
        ("shop/train", False),
    ],
)
def test_the_frameworks_digest_is_without_the_workflows_package(fake_framework, module, counts):
    before = library.framework("mlops_nb.shop")
    (fake_framework / f"{module}.py").write_text("x = 2")
    after = library.framework("mlops_nb.shop")
    assert after["version"] == before["version"] == mlops_nb.__version__
    assert (after["digest"] != before["digest"]) is counts


# What a model file may name


@pytest.mark.parametrize(
    ("name", "package", "may"),
    [
        ("mlops_nb.churn.train.features", "mlops_nb.churn", True),
        ("mlops_nb.core.lake.append", "mlops_nb.churn", False),
        ("mlops_nb.churning.train.features", "mlops_nb.churn", False),
        ("mlops_nb.core.lake.append", "mlops_nb", False),
        ("mlops_nb.churn.train.features", "mlops_nb", False),
        ("mlops_nb.churn.train.features", "", False),
        ("shop.features.ratio", "shop", True),
        ("shopping.features", "shop", False),
        ("os.system", "", False),
        ("sklearn.pipeline.Pipeline", "", True),
        ("sklearn.datasets.fetch_openml", "", False),
    ],
)
def test_a_model_file_names_the_package_and_listed_types_only(name, package, may):
    assert is_allowed(name, package) is may


def test_everything_of_the_framework_that_a_model_file_may_name_is_there():
    for name in OWN_TYPES:
        assert is_allowed(name, "") and callable(resolve_name(name))


# Where processes import it from

LIBRARY = """
import polars as pl
FACTOR = {factor}
def features(frame): return frame.with_columns(z=pl.col("x") * FACTOR)
"""

STAGE = """
import ray
from mlops_nb import glue
from mlops_nb.churn.train import FACTOR
from mlops_nb.core import cluster
glue("kernel", FACTOR)
cluster.connect()
def of_worker():
    from mlops_nb.churn import train
    return train.FACTOR
glue("worker", ray.get(ray.remote(of_worker).remote()))
"""

WORK = """
import json, sys
from pathlib import Path
import polars as pl
from sklearn.linear_model import LogisticRegression
import mlops_nb
from mlops_nb.churn import train
from mlops_nb.core import cluster, tracking
from mlops_nb.core.settings import load_settings
from mlops_nb.data.profiles.profiling import profile
from mlops_nb.flow.workflow import Workflow
from mlops_nb.models import registry
from mlops_nb.science.objective import Objective
from mlops_nb.science.candidates import Candidate
from mlops_nb.science.pipeline import fit
from mlops_nb.service import deployment

settings = load_settings(sys.argv[1])
rows = pl.DataFrame({"id": range(60), "x": [float(i % 7) for i in range(60)],
                     "y": ["Yes" if i % 7 > 3 else "No" for i in range(60)]})
objective = Objective(name="m", question="?", target="y", positive="Yes", key="id")
fitted = fit(rows, objective, Candidate("logistic", LogisticRegression()), features=train.features)
report = settings.root / "made"
report.mkdir()
(report / "report.json").write_text('{"passed": true}')
with tracking.start_run(settings, name="train"):
    report_uri = tracking.log_folder(report, "report", settings=settings)
    registry.register("m", fitted.save(settings), dataset="m@0", profile=profile(rows),
                      objective=objective, by="ann", report_uri=report_uri, settings=settings)
module = settings.root / "mlops_nb" / "churn" / "train.py"
module.write_text(module.read_text().replace(f"FACTOR = {train.FACTOR}", "FACTOR = -7"))
try:
    run = Workflow.discover(settings.root / "nbs").run(settings=settings)
    endpoint = deployment.stage("m/1", settings=settings)
    served = endpoint.predict(rows.drop("y", "id"))["probability"].to_list()
finally: cluster.down(settings)
print(json.dumps({"framework": mlops_nb.__file__, "factor": train.FACTOR, "outputs": run.outputs,
                  "served": served, "offline": fitted.probability(rows).tolist(),
                  "mismatch": endpoint.framework}))
"""


def installed(how: str, folder: Path) -> Path:
    "A Python in which this framework is installed."
    if how == "editable":
        return Path(sys.executable)
    source = folder / "source"
    shutil.copytree(
        ROOT / "mlops_nb", source / "mlops_nb", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "venv", symlinks=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    others = {
        p for p in sys.path if p.endswith("site-packages")
    }  # the same dependencies, not the editable install
    (site / "dependencies.pth").write_text("\n".join(sorted(others)))
    (folder / "venv" / "share").symlink_to(Path(sys.prefix) / "share")  # Jupyter's templates
    return folder / "venv" / "bin" / "python"


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["editable", "wheel"])
def test_kernels_workers_and_replicas_have_the_workflows_package(how, tmp_path, monkeypatch):
    "The installed `mlops_nb.churn` is another one; the workspace's changes before serving."
    for name in [n for n in os.environ if n.startswith("RAY_")]:
        monkeypatch.delenv(name)
    settings = create(
        tmp_path / "w",
        serve={"port": free_port()},
        workspace={"name": "m", "package": "mlops_nb.churn"},
    )
    package = settings.root / "mlops_nb" / "churn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text(LIBRARY.format(factor=100))
    stage_notebook(settings.root / "nbs" / "1_where.ipynb", STAGE)
    python = installed(how, tmp_path)
    env = os.environ | library.import_variables(cluster.snapshot(settings), "mlops_nb.churn")
    done = subprocess.run(
        [python, "-c", WORK, settings.root], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["framework"]).is_relative_to(ROOT if how == "editable" else tmp_path / "venv")
    assert said["factor"] == 100 and said["outputs"] == {"kernel": -7, "worker": -7}
    assert said["served"] == pytest.approx(said["offline"]) and said["mismatch"] == {}


ELSEWHERE = """
import sys
import ray
from mlops_nb.core import cluster
from mlops_nb.core.settings import load_settings

cluster.connect(load_settings(sys.argv[1]))
def of_worker():
    from mlops_nb.churn import train
    from mlops_nb.core import events
    return train.FACTOR, train.__file__
print(*ray.get(ray.remote(of_worker).remote()))
"""


@pytest.mark.cluster
def test_workers_of_a_cluster_elsewhere_get_the_package_from_ray(ray_cluster, tmp_path):
    settings = create(tmp_path / "w", workspace={"package": "mlops_nb.churn"})
    package = settings.root / "mlops_nb" / "churn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("FACTOR = 5")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, settings.root],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    factor, file = done.stdout.split()
    assert factor == "5" and "py_modules" in file and not Path(file).is_relative_to(settings.root)


def stage_notebook(path: Path, code: str) -> None:
    "A stage of these cells, without parameters."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    path.parent.mkdir(parents=True)
    cells = [
        new_code_cell("", metadata={"tags": ["parameters"]}),
        new_code_cell(textwrap.dedent(code).strip()),
    ]
    nbformat.write(new_notebook(cells=cells), path)
