"The command line: bad input ends with one clear sentence; two workspaces do not notice each other."

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import nbformat
import polars as pl
import psutil
import pytest
from conftest import free_port

from mlops_nb.core import cluster, events, head, lake, locks
from mlops_nb.core.errors import WorkflowError
from mlops_nb.core.settings import create
from mlops_nb.front.overview import state
from mlops_nb.front.pages import control_page
from mlops_nb.front.run_commands import parse_parameters

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).parent / "mlops-nb"
NOTEBOOKS = ROOT / "tests" / "notebooks"


def call(*words, env=None, timeout=300):
    return subprocess.run(
        [COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | (env or {}),
        cwd="/",
    )


def fails(done, *says, code=1):
    "It failed with one sentence, and no traceback."
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in says:
        assert word in done.stderr.replace("\n", " "), done.stderr


@pytest.fixture
def apart(monkeypatch):
    "Without the session's cluster: a workspace of its own."
    for name in ("MLOPS_NB__CLUSTER__ADDRESS", "MLOPS_NB__SERVE__PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in [n for n in os.environ if n.startswith("RAY_")]:
        monkeypatch.delenv(name)


def a_copy(folder: Path, **sections) -> Path:
    "The reference workspace, copied."
    for name in ("nbs", "mlops_nb", "data"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "requirements.lock", folder)
    create(
        folder,
        **{"workspace": {"name": "churn", "package": "mlops_nb.churn", "notebooks": "nbs/churn"}}
        | sections,
    )
    return folder


def test_no_workspace(tmp_path):
    fails(call("status", "-w", tmp_path), "no settings.ini")


def test_unknown_setting(tmp_path):
    (tmp_path / "settings.ini").write_text("[serve]\nprot = 1\n")
    fails(call("status", "-w", tmp_path), "prot", "did you mean 'port'")


def test_usage():
    fails(call("lineage"), code=2)
    fails(call("run", "-p", "trials"), "NAME=VALUE", code=2)
    fails(call("no-such-command"), code=2)


def test_debug_shows_the_traceback(tmp_path):
    done = call("status", "-w", tmp_path, "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_unknown_parameter(tmp_path):
    fails(
        call("run", "-w", a_copy(tmp_path / "w"), "-p", "trails=3"),
        "trails",
        "did you mean `trials`",
    )


def test_notebook_without_parameters(tmp_path):
    work = a_copy(tmp_path / "w")
    shutil.copy(NOTEBOOKS / "no_parameters.ipynb", work / "nbs" / "churn" / "7_more.ipynb")
    fails(call("run", "-w", work), "7_more.ipynb", "parameters")


def test_a_check_tells_all_and_starts_nothing(tmp_path, apart):
    settings = create(tmp_path / "w")
    (settings.root / "nbs").mkdir()
    shutil.copy(NOTEBOOKS / "1_make.ipynb", settings.root / "nbs")
    done = call("run", "--check", "-w", settings.root)
    assert done.returncode == 0 and "the workflow can run" in done.stdout, done.stderr
    for name in ("no_parameters", "does_not_compile"):
        shutil.copy(NOTEBOOKS / f"{name}.ipynb", settings.root / "nbs" / f"2_{name}.ipynb")
    fails(
        call("run", "--check", "-w", settings.root, "-p", "rows=many"),
        "2_no_parameters.ipynb: no code cell",
        "2_does_not_compile.ipynb, cell 3: does not compile",
        "1_make.ipynb, cell 2: `rows` is 'many', expected int",
    )
    assert not settings.state.exists()


def test_a_check_shows_warnings_and_exits_0(tmp_path, apart):
    settings = create(tmp_path / "w")
    (settings.root / "nbs").mkdir()
    make = nbformat.read(NOTEBOOKS / "1_make.ipynb", as_version=4)
    make.cells[-1].source += "\nget_ipython().user_ns['later'] = 1\nlater"
    nbformat.write(make, settings.root / "nbs" / "1_make.ipynb")
    shutil.copy(
        settings.root / "nbs" / "1_make.ipynb", settings.root / "nbs" / "1_make-Copy1.ipynb"
    )
    warnings = [
        "1_make-Copy1.ipynb: left out",
        "no cell visibly defines `later`; get_ipython() in cell 3 may",
    ]
    done = call("run", "--check", "-w", settings.root)
    assert done.returncode == 0 and "the workflow can run" in done.stdout
    for warning in warnings:
        assert f"{warning}" in done.stderr and done.stderr.count("warning: ") == 2
    done = call("run", "--check", "--json", "-w", settings.root, "-p", "rows=many")
    report = json.loads(done.stdout)
    assert (
        done.returncode == 1
        and report["can_run"] is False
        and "`rows` is 'many'" in report["problems"][0]
    )
    assert all(
        expected in given for expected, given in zip(warnings, report["warnings"], strict=True)
    )
    (settings.root / "nbs" / "2_broken.ipynb").write_text("")
    fails(
        call("run", "--check", "-w", settings.root),
        "2_broken.ipynb: not a notebook: the file is empty",
    )


@pytest.mark.parametrize(
    ("declared", "given", "value"),
    [
        ("x = 'a'", "007", "007"),
        ("x = 'a'", "7", "7"),
        ("x = 'a'", "true", "true"),
        ("x = 'a'", "NaN", "NaN"),
        ("x = 'a'", '"a b"', "a b"),
        ("x = 1", "7", 7),
        ("x = 0.5", "7", 7.0),
        ("x = True", "False", False),
        ("x: int | None = 1", "null", None),
        ("x: str | None = 'a'", "None", None),
        ("x: list[str]", '["7"]', ["7"]),
        ("x = None", "007", "007"),
        ("x = None", "7", 7),
        ("x = None", '"7"', "7"),
        ("x = None", "NO", "NO"),
        ("x = None", "True", True),
        ("x = None", "2026-01-31", "2026-01-31"),
        ("x = None", "1e999", "1e999"),
        ("x = None", "Infinity", "Infinity"),
        ("x = None", '{"a": [1]}', {"a": [1]}),
        ("x = 1", "many", "many"),
    ],
)
def test_a_parameter_is_what_its_type_says(declared, given, value):
    from mlops_nb.flow.workflow.cells import parse_cell
    from mlops_nb.flow.workflow.stages import _parameters

    stage = SimpleNamespace(parameters={p.name: p for p in _parameters(parse_cell(declared))})
    assert repr(parse_parameters([f"x={given}"], [stage])) == repr({"x": value})


def test_a_parameter_that_is_given_twice_is_a_mistake():
    fails(call("run", "-p", "trials=1", "-p", "trials=2"), "'trials' is given twice", code=2)


def test_port_in_use(tmp_path, apart):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        create(tmp_path / "w", serve={"port": port})
        fails(call("up", "-w", tmp_path / "w"), str(port), "in use")
    assert not (tmp_path / "w" / ".mlops_nb" / "cluster.json").exists()


def test_cluster_not_reachable(tmp_path, apart):
    create(tmp_path / "w", cluster={"address": f"127.0.0.1:{free_port()}"})
    fails(call("up", "-w", tmp_path / "w"), "cannot be reached", "[cluster] address")


def test_database_unreadable(tmp_path, ray_cluster):
    (tmp_path / "mlflow.db").write_text("this is no database")
    work = a_copy(tmp_path / "w", tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    fails(call("run", "-w", work), "mlflow.db", "cannot be read", "[tracking] uri")


def test_missing_source_and_wrong_target(tmp_path, ray_cluster):
    work = a_copy(tmp_path / "w")
    fails(
        call("run", "-w", work, "--to", "ingest", "-p", "source=data/no.csv"),
        "no data at",
        "data/no.csv",
    )
    assert not lake.table_exists(str(work / "storage" / "lake" / "churn"))
    module = work / "mlops_nb" / "churn" / "objective.py"
    notebook = work / "nbs" / "churn" / "0_objective.ipynb"
    for file in (module, notebook):
        file.write_text(
            file.read_text()
            .replace('target=\\"churn\\"', 'target=\\"left\\"')
            .replace('target="churn"', 'target="left"')
        )
    fails(call("run", "-w", work, "--to", "ingest"), "left", "1_ingest.ipynb")


def test_a_leaking_source_is_refused(tmp_path, ray_cluster):
    work = a_copy(tmp_path / "w")
    customers = pl.read_parquet(work / "data" / "telco_churn.parquet")
    again = customers.head(1000).with_columns(pl.col("customer_id") + "-2")
    pl.concat([customers, again]).write_parquet(work / "data" / "twice.parquet")
    fails(
        call("run", "-w", work, "--to", "ingest", "-p", "source=data/twice.parquet"),
        "of test (18.66%) repeat a row of train",
        "more than the 1.00% that the contract allows (max_repeated)",
        "Nothing was written",
    )
    assert "failed: ingest: 1_ingest.ipynb, cell 10" in call("status", "-w", work).stdout


def test_a_second_run_is_a_no_op_and_a_batch_says_what_failed(tmp_path, ray_cluster):
    settings = create(tmp_path / "w")
    (settings.root / "nbs").mkdir()
    shutil.copy(NOTEBOOKS / "1_make.ipynb", settings.root / "nbs")
    first, again = (call("run", "-w", settings.root) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert "nothing to do" not in first.stdout and "nothing to do" in again.stdout
    (tmp_path / "grid.csv").write_text("rows\n1\n2\n")
    broken = nbformat.read(NOTEBOOKS / "1_make.ipynb", as_version=4)
    broken.cells[-1].source += "\nif rows == 2: raise ValueError('two')"
    nbformat.write(broken, tmp_path / "some.ipynb")
    done = call(
        "batch", tmp_path / "some.ipynb", "--grid", tmp_path / "grid.csv", "-w", settings.root
    )
    fails(done, "1 of 2 sets failed", "some.ipynb, cell 3, line 5: ValueError: two")
    assert "t@1" in done.stdout


ASK = """\
from pathlib import Path
from mlops_nb.core.errors import WaitingForPerson
if not Path("../decided").exists():
    raise WaitingForPerson("m/1 waits for a person", "mlops-nb approve m/1 --by NAME")"""


def test_a_run_that_waits_exits_0_and_says_what_to_type(tmp_path, ray_cluster):
    settings = create(tmp_path / "w")
    (settings.root / "nbs").mkdir()
    shutil.copy(NOTEBOOKS / "1_make.ipynb", settings.root / "nbs")
    ask = nbformat.read(NOTEBOOKS / "1_make.ipynb", as_version=4)
    ask.cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]})]
    ask.cells.append(nbformat.v4.new_code_cell(ASK))
    nbformat.write(ask, settings.root / "nbs" / "2_ask.ipynb")
    here = ("-w", settings.root)

    command = ("run", "-p", "rows=2", *here)
    done = call(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("waiting", "ask: m/1 waits for a person", "mlops-nb approve m/1 --by NAME"):
        assert words in done.stdout
    assert "then  mlops-nb run -p rows=2\n" in done.stdout, "the same run"
    assert "error" not in done.stdout + done.stderr
    told = json.loads(call(*command, "--json").stdout)
    assert told["state"] == "waiting"
    assert [s["state"] for s in told["stages"]] == ["reused", "waiting"]
    assert told["stages"][1]["command"] == "mlops-nb approve m/1 --by NAME"

    assert "to decide  mlops-nb approve m/1 --by NAME" in call("status", *here).stdout
    [waits] = json.loads(call("status", "--json", *here).stdout)["run"]["waits"]
    assert (waits["stage"], waits["decision"]) == ("ask", None)
    assert "mlops-nb approve m/1" in control_page(state(settings))
    events.record(settings.events, "approved", "m/1", by="ann")
    (settings.root / "decided").touch()
    text = call("status", *here).stdout
    assert "m/1 was approved by ann" in text and "go on  mlops-nb run -p rows=2" in text
    assert "to decide" not in text
    assert "m/1 was approved by ann. To go on" in control_page(state(settings))
    events.record(settings.events, "rejected", "m/1", by="bob")
    text = call("status", *here).stdout
    assert "m/1 was rejected by bob; that is final" in text and "go on" not in text
    page = control_page(state(settings))
    assert "m/1 was rejected by bob; that is final" in page and "To go on" not in page
    done = call(*command)
    assert done.returncode == 0 and "waiting" not in done.stdout
    assert "go on" not in call("status", *here).stdout


def test_a_run_that_is_killed_beside_its_head_leaves_nothing(tmp_path, apart):
    "The command drives it without a Ray worker: the lock, the kernel and its sockets are removed."
    left = lambda: set(Path(tempfile.gettempdir()).glob("mlops-nb-*"))
    settings, before = create(tmp_path / "w", serve={"port": free_port()}), left()
    (settings.root / "nbs").mkdir()
    shutil.copy(NOTEBOOKS / "1_make.ipynb", settings.root / "nbs")
    shutil.copy(NOTEBOOKS / "hangs.ipynb", settings.root / "nbs" / "2_hangs.ipynb")
    command = [COMMAND, "run", "-w", settings.root]
    try:
        assert call("run", "--to", "make", "-w", settings.root).returncode == 0
        family = head.session_processes(cluster.find_cluster(settings).session)
        forks = [p for p in family if "forkserver.py" in " ".join(p.cmdline())]
        server = min(forks, key=lambda p: p.create_time())  # the others are its children
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with pytest.raises(WorkflowError, match="a run holds this workspace"):
            while not time.sleep(0.1):
                with locks.workspace_lock(settings=settings):
                    pass
        executed = lambda: [
            n for n in Path(settings.runs).rglob("2_hangs.ipynb") if '"still here' in n.read_text()
        ]
        until = time.monotonic() + 60
        while not executed():
            assert time.monotonic() < until and not time.sleep(0.1)
        kernels = lambda: [*Path(cluster.find_cluster(settings).folder).glob("forks.*")]
        until = time.monotonic() + 60
        while not len(kernels()) == len(server.children()) == 2:
            assert time.monotonic() < until and not time.sleep(0.1)
        run.kill()
        run.wait()
        while not len(kernels()) == len(server.children()) == 1:
            assert time.monotonic() < until and not time.sleep(0.1)
        with locks.workspace_lock(settings=settings):
            pass
        [notebook] = executed()
        cells = nbformat.read(notebook, as_version=4).cells
        states = [c.metadata.papermill.status for c in cells if c.cell_type == "code"]
        assert states[-2:] == ["running", "pending"]
        shutil.copy(NOTEBOOKS / "2_count.ipynb", settings.root / "nbs" / "2_hangs.ipynb")
        done = call("run", "--json", "-w", settings.root)
        assert done.returncode == 0 and json.loads(done.stdout)["outputs"]["total"] == 6, (
            done.stderr
        )
    finally:
        call("down", "-w", settings.root)
    assert left() <= before


def test_two_workspaces_do_not_notice_each_other(tmp_path, apart):
    "Both are up and the replicas of one are killed: the other never answers for it and goes on."
    a, b = (create(tmp_path / n, workspace={"name": n}, serve={"port": free_port()}) for n in "ab")
    urls = {s.workspace.name: f"http://127.0.0.1:{s.serve.port}/api/status" for s in (a, b)}
    try:
        with ThreadPoolExecutor(2) as both:
            done = list(both.map(lambda s: call("up", "-w", s.root), (a, b)))
        assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
        name = lambda which: httpx.get(urls[which], timeout=60).json()["workspace"]["name"]
        assert [name("a"), name("b")] == ["a", "b"]
        victims = [
            p
            for p in head.session_processes(cluster.find_cluster(a).session)
            if "ServeReplica" in " ".join(p.cmdline())
        ]
        assert victims
        for p in victims:
            p.send_signal(signal.SIGKILL)
        answers, until = [], time.monotonic() + 90
        while time.monotonic() < until and answers[-3:] != ["a"] * 3:
            assert name("b") == "b"
            try:
                answers.append(name("a"))
            except (httpx.HTTPError, json.JSONDecodeError):
                answers.append("none")
            time.sleep(0.05)
        assert set(answers) <= {"a", "none"} and answers[-1] == "a"
        gone = head.session_processes(cluster.find_cluster(a).session)
        # The address of its own head, as the processes of a workspace have it, changes nothing.
        joined = {"MLOPS_NB__CLUSTER__ADDRESS": cluster.find_cluster(a).address}
        assert call("down", "-w", a.root, env=joined).returncode == 0
        assert not [p for p in gone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert name("b") == "b" and cluster.find_cluster(b)
    finally:
        for s in (a, b):
            call("down", "-w", s.root)
    assert not cluster.find_cluster(b) and not httpx_answers(urls["b"])


def httpx_answers(url: str) -> bool:
    try:
        return bool(httpx.get(url, timeout=2))
    except httpx.HTTPError:
        return False


def test_lab_opens_on_the_workspace(tmp_path):
    settings, port = create(tmp_path / "w"), free_port()
    running = subprocess.Popen(
        [COMMAND, "lab", "--port", str(port), "--no-browser", "-w", settings.root],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while not httpx_answers(f"http://127.0.0.1:{port}/api") and time.monotonic() < until:
            time.sleep(0.3)
        assert httpx.get(f"http://127.0.0.1:{port}/api").json()["version"]
    finally:
        running.terminate()
        running.wait(60)
