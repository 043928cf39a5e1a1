"""Ten public tables that nobody here made: what `init` says, and each to a monitored endpoint."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from public_tables import write_public_tables
from reference_workspaces import run_stages_by_hand
from test_cli import ROOT, call

from mlops_nb.core import events, lake
from mlops_nb.core.settings import Settings, load_settings
from mlops_nb.front import starter
from mlops_nb.front.starter.answers import with_flags
from mlops_nb.front.starter.plan import Choices
from mlops_nb.models import registry


@dataclass
class Expected:
    "What `init` must say of a table, and what the model of it must achieve."

    file: str
    flags: str = ""
    target: str = ""
    task: str = "binary"
    positive: str | None = None
    metric: str | None = None
    key: str | None = None
    group: str | None = None
    row_number: str | None = None
    ignored: set[str] = field(default_factory=set)
    questions: set[str] = field(default_factory=set)
    protected: set[str] = field(default_factory=set)
    warnings: tuple[str, ...] = ()
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)


TABLES = {
    "credit": Expected(
        "Credit Data.csv",
        target="Status",
        positive="bad",
        metric="roc_auc",
        row_number="Unnamed: 0",
        ignored={"Days Past Due", "Country"},
        protected={"Age", "Marital.Status"},
        warnings=("25 rows repeat others", "Days Past Due"),
        scores={"roc_auc": (0.80, 0.87)},
    ),
    "penguins": Expected(
        "penguins.csv",
        "--target Species",
        target="Species",
        task="multiclass",
        metric="log_loss",
        row_number="Unnamed: 0",
        ignored={"Species Code", "Region", "Sample Date"},
        protected={"Sex"},
        warnings=("sorted by the target",),
        scores={"accuracy": (0.93, 1)},
    ),
    "diamonds": Expected(
        "diamonds.csv",
        "--target Price --keep Carat --keep X.mm --keep Y.mm --keep Z.mm",
        target="Price",
        task="regression",
        metric="mae",
        row_number="Unnamed: 0",
        ignored={"Price EUR", "Currency", "Listed.On"},
        scores={"mae": (150, 400)},
    ),
    "HMDA": Expected(
        "HMDA.csv",
        target="deny",
        positive="yes",
        metric="roc_auc",
        row_number="rownames",
        protected={"afam"},
        scores={"roc_auc": (0.72, 0.95)},
    ),
    "Default": Expected(
        "Default.csv",
        target="default",
        positive="Yes",
        metric="average_precision",
        row_number="rownames",
        scores={"roc_auc": (0.90, 0.98)},
    ),
    "attrition": Expected(
        "attrition.csv",
        target="Attrition",
        positive="Yes",
        metric="roc_auc",
        key="rownames",
        protected={"Age", "Gender", "MaritalStatus"},
        scores={"roc_auc": (0.70, 0.95)},
    ),
    "flights": Expected(
        "flights.csv",
        "--target arr_delay",
        target="arr_delay",
        task="regression",
        metric="mae",
        row_number="rownames",
        ignored={"year", "dep_delay", "arr_time"},
        questions={"dep_delay", "arr_time"},
        warnings=("9,430 rows have no 'arr_delay'",),
        scores={"mae": (10, 30)},
    ),
    "sleepstudy": Expected(
        "sleepstudy.csv",
        target="Reaction",
        task="regression",
        metric="mae",
        group="Subject",
        row_number="rownames",
        warnings=("only 180 rows",),
    ),
    "colon": Expected(
        "colon.csv",
        "--target status",
        target="status",
        positive="1",
        group="id",
        row_number="rownames",
        ignored={"study", "time"},
        questions={"time"},
        protected={"sex", "age"},
    ),
    "telco": Expected(
        "telco_churn.parquet",
        target="churn",
        positive="Yes",
        metric="roc_auc",
        key="customer_id",
        protected={"female", "senior_citizen"},
        scores={"roc_auc": (0.82, 0.88)},
    ),
}
IN_MAKE_TEST = {"HMDA", "penguins", "sleepstudy"}


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> Path:
    "A folder with all tables."
    folder = tmp_path_factory.mktemp("tables")
    write_public_tables(folder)
    shutil.copy(ROOT / "data/telco_churn.parquet", folder)
    return folder


def init(directory: Path, tables: Path, expected: Expected, *more: str):
    "Run `mlops-nb init` on a table."
    flags = shlex.split(expected.flags)
    return call("init", directory, "--source", tables / expected.file, *flags, *more)


def look_at(expected: Expected, tables: Path, directory: Path, **options) -> starter.Started:
    "Return what `init` decides about a table, without writing anything."
    choices = with_flags(Choices(source=str(tables / expected.file)), expected.flags)
    return starter.init(directory, choices, dry_run=True, **options)


@pytest.mark.parametrize("name", TABLES)
def test_what_init_says_of_a_table(name, tables, tmp_path):
    expected = TABLES[name]
    started = look_at(expected, tables, tmp_path / "new", yes=True)
    plan, roles = started.plan, started.plan.roles
    assert roles.target == expected.target and roles.task == expected.task
    assert roles.positive == expected.positive
    assert (roles.key, roles.group) == (expected.key, expected.group)
    assert roles.metric == expected.metric or expected.metric is None
    assert set(roles.ignore) == expected.ignored
    assert set(roles.protected) == expected.protected
    numbers = [finding.column for finding in plan.findings if finding.role == "row number"]
    assert numbers == [expected.row_number] * (expected.row_number is not None)
    for words in expected.warnings:
        assert any(words in sentence for sentence in plan.warnings), plan.warnings
    assert not (tmp_path / "new").exists()


def test_the_page_shows_what_init_says_today(tables, tmp_path):
    "docs/own-table.md has each column in one line, with its role and the reason."
    plan = look_at(TABLES["credit"], tables, tmp_path / "new", yes=True).plan
    page = " ".join((ROOT / "docs/own-table.md").read_text(encoding="utf-8").split())
    for finding in plan.findings:
        line = (finding.column, finding.read_as, finding.role, finding.because)
        assert " ".join(line) in page
    assert all(f"warning: {warning}" in page for warning in plan.warnings)
    assert plan.approval == "person" and str(Path.home()) not in page


@pytest.mark.parametrize("name", TABLES)
def test_only_what_is_suspect_is_asked(name, tables, tmp_path):
    expected = TABLES[name]
    questions = look_at(expected, tables, tmp_path / "new").questions
    assert {question.column for question in questions} == expected.questions


@pytest.mark.parametrize("name, both", [("penguins", "Species Code"), ("diamonds", "Price EUR")])
def test_a_target_that_is_not_clear_is_not_guessed(name, both, tables, tmp_path):
    done = call("init", tmp_path / "new", "--source", tables / TABLES[name].file, "--yes")
    assert done.returncode == 2 and f"--target '{both}'" in done.stderr
    assert f"--target {TABLES[name].target}" in done.stderr
    assert not (tmp_path / "new").exists()


def run(work: Path):
    "Run the workflow; on a machine that is busy, measure the latency again, as the README says."
    for _ in range(3):
        done = call("run", "-w", work, timeout=900)
        if "latency" not in done.stderr:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_to_the_end(work: Path) -> None:
    "Run the workflow; where a person must approve, approve and run again."
    approval = re.search(r"mlops-nb (approve \S+ --by) NAME", run(work).stdout)
    if approval:
        assert call(*shlex.split(approval[1]), "a reviewer", "-w", work).returncode == 0
        run(work)


def watched(settings: Settings) -> tuple[int, dict]:
    "Return the logged production rows of the endpoint, and what monitoring recorded last."
    name = settings.workspace.name
    log = lake.scan(settings.table("_predictions", name)).filter(stage="production").collect()
    return log.height, events.newest(settings.events, "monitored", name)["details"]


def ask(settings: Settings) -> dict:
    "Send the request that `status` prints. Return the first answer and the names that were sent."
    line = re.search(r"curl .*", call("status", "-w", settings.root).stdout)[0]
    answer = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=60)
    sent = json.loads(shlex.split(line)[-1])["rows"][0]
    return json.loads(answer.stdout) | {"sent": set(sent)}


def all_tables():
    "Yield each table as a parameter; three are in `make test`, all in `make tables`."
    for name in TABLES:
        apart = [pytest.mark.tables, pytest.mark.xdist_group(f"table {name}")]
        marks = [] if name in IN_MAKE_TEST else apart
        yield pytest.param(name, marks=[pytest.mark.cluster, *marks])


@pytest.mark.parametrize("name", [*all_tables()])
def test_from_a_file_to_a_monitored_endpoint(name, tables, tmp_path, ray_cluster):
    expected = TABLES[name]
    work = tmp_path / "shop"
    done = init(work, tables, expected, "--yes", "--name", f"own-{name.lower()}")
    assert done.returncode == 0, done.stdout + done.stderr
    run_to_the_end(work)
    assert call("simulate", "-w", work).returncode == 0
    settings = load_settings(work)
    logged, monitored = watched(settings)
    assert logged >= 100 and monitored["rows"] >= 100 and monitored["report"]
    answer = ask(settings)
    assert answer["predictions"] and not answer["sent"] & expected.ignored
    bundle = registry.resolve(f"{settings.workspace.name}@champion", settings=settings)
    scores = bundle.bundle(settings).report["metrics"]
    for metric, (low, high) in expected.scores.items():
        assert low <= scores[metric]["value"] <= high, (metric, scores[metric])
    git = subprocess.run(["git", "status", "--porcelain"], cwd=work, capture_output=True, text=True)
    assert git.returncode == 0 and not git.stdout


@pytest.mark.soak
@pytest.mark.browser
def test_a_new_workspace_in_jupyterlab_and_in_its_own_environment(
    tables, tmp_path, ray_cluster, chromium
):
    work = tmp_path / "shop"
    assert init(work, tables, TABLES["HMDA"]).returncode == 0
    run_to_the_end(work)
    run_stages_by_hand(load_settings(work), "shop")
    cleaned = subprocess.run(["make", "clean", "test"], cwd=work, capture_output=True, text=True)
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    git = subprocess.run(["git", "status", "--porcelain"], cwd=work, capture_output=True, text=True)
    assert git.returncode == 0 and not git.stdout
