"Triggers: what is due, one run for all of it, and each row exactly once, whatever is killed."

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import nbformat
import polars as pl
import psutil
import pytest
from fastapi.testclient import TestClient

from mlops_nb.core import events, lake
from mlops_nb.core.errors import Busy, SettingsError, TriggerError, WorkflowError
from mlops_nb.core.locks import workspace_lock
from mlops_nb.core.settings import create
from mlops_nb.flow import triggers
from mlops_nb.flow.triggers import reasons
from mlops_nb.flow.triggers.sensors import SENSORS
from mlops_nb.front import pages

COMMAND = Path(sys.executable).parent / "mlops-nb"
INGEST = """from mlops_nb.data.ingest import ingest
from mlops_nb import glue
found = ingest("rows", source=source, key="id")
glue("dataset_version", found.ref)"""


def made(folder: Path, **trigger):
    "A workspace with one trigger, called `t`."
    return create(folder, **{"trigger:t": trigger})


def finish(parameters):
    return SimpleNamespace(id="r")


def fail(parameters):
    raise WorkflowError("stage ingest failed")


def due(settings) -> list[str]:
    return [d.trigger for d in reasons.pending(settings)]


def kinds(settings) -> list[str]:
    return events.history(settings.events).collect()["kind"].to_list()


def notebook(path: Path, parameters: str, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


# What is due


def test_files_fire_when_settled_and_once(tmp_path):
    settings = made(tmp_path, files="in/*.csv", settle=0.3)
    assert due(settings) == []
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("id\n1\n")
    assert due(settings) == []
    time.sleep(0.4)
    assert due(settings) == ["t"]
    triggers.fire(finish, reasons.pending(settings), settings=settings)
    assert due(settings) == []
    (tmp_path / "in/a.csv").write_text("id\n2\n")  # same size
    time.sleep(0.4)
    assert due(settings) == ["t"]


def test_what_comes_during_a_run_is_the_next_runs(tmp_path):
    settings = made(tmp_path, files="*.csv", settle=0)
    (tmp_path / "a.csv").write_text("id\n1\n")

    def run(parameters):
        (tmp_path / "b.csv").write_text("id\n2\n")
        return finish(parameters)

    triggers.fire(run, reasons.pending(settings), settings=settings)
    assert due(settings) == ["t"]


def test_a_table_fires_on_rows_not_on_upkeep(tmp_path):
    settings = made(tmp_path, table="rows")
    assert due(settings) == []
    for n in range(3):
        lake.append(settings.table("rows"), pl.DataFrame({"id": [n]}))
    triggers.fire(finish, reasons.pending(settings), settings=settings)
    lake.maintain(settings.table("rows"), keep_hours=200)
    assert due(settings) == []
    lake.append(settings.table("rows"), pl.DataFrame({"id": [4]}))
    assert due(settings) == ["t"]


def test_a_database_fires_past_its_watermark(tmp_path):
    settings = made(tmp_path, database="sqlite:///shop.db", query="sales", watermark="at")
    with pytest.raises(TriggerError, match="cannot be read"):
        reasons.pending(settings)
    assert not (tmp_path / "shop.db").exists()
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.execute("CREATE TABLE sales (at TEXT)")
    assert due(settings) == []
    for day in (5, 6):
        with sqlite3.connect(tmp_path / "shop.db") as db:
            db.execute(f"INSERT INTO sales VALUES ('2026-01-0{day}')")
        assert due(settings) == ["t"]
        triggers.fire(finish, reasons.pending(settings), settings=settings)
        assert due(settings) == []


@pytest.mark.parametrize(("missed", "expected"), [("once", ["t"]), ("skip", [])])
def test_missed_ticks_after_downtime(tmp_path, missed, expected):
    settings = made(tmp_path, cron="* * * * *", missed=missed)
    assert due(settings) == []  # nobody has watched yet
    earlier = (datetime.now(UTC) - timedelta(hours=3)).replace(second=0, microsecond=0)
    events.record(
        settings.events, "triggered", "trigger:t", by="watch", seen={"tick": earlier.isoformat()}
    )
    assert due(settings) == ["t"]
    if datetime.now(UTC).second > 55:
        time.sleep(6)  # no tick between the two lines
    triggers.arm(settings=settings)
    assert due(settings) == expected
    if expected:
        triggers.fire(finish, reasons.pending(settings), settings=settings)
    assert due(settings) == []  # a hundred and eighty ticks, one run


def test_proposals_fire_until_another_version_is_deployed_and_rest_an_hour(tmp_path):
    settings = made(tmp_path, alert="churn")
    say = lambda kind: events.record(settings.events, kind, "churn", by="test")
    say("retraining_proposed")
    [found] = reasons.pending(settings)
    assert found.after < datetime.now(UTC)
    triggers.fire(finish, [found], settings=settings)
    assert due(settings) == []
    say("deployed")
    say("retraining_proposed")
    [found] = reasons.pending(settings)
    assert timedelta(minutes=59) < found.after - datetime.now(UTC) < timedelta(minutes=61)
    said = []
    assert not triggers.watch_once(
        fail, lambda what, why: said.append(what), settings=settings
    ) and said == ["waiting"]
    say("deployed")
    assert due(settings) == []


@pytest.mark.parametrize(
    "kind", ["nulls", "schema", "errors", "range", "unseen", "fairness", "drift"]
)
def test_an_alert_alone_starts_no_run(tmp_path, kind):
    "Only a proposal does. Monitoring makes one for drift and performance, not on broken data."
    settings = made(tmp_path, alert="churn")
    events.record(
        settings.events,
        "alert_opened",
        "churn",
        by="monitoring",
        alert=kind,
        column="age",
        version="1",
    )
    assert due(settings) == []


def test_requests_are_kept_and_answered_once_each(tmp_path):
    settings, ran = create(tmp_path), []
    ask = lambda n: reasons.request_run({"trials": n}, by="ann", settings=settings)
    ids = [ask(8), ask(8), ask(9)]

    def run(parameters):
        ran.append(parameters)
        return finish(parameters)

    while triggers.watch_once(run, lambda *_: None, settings=settings):
        pass
    assert ran == [{"trials": 8}, {"trials": 9}]
    answered = events.history(settings.events, kind="triggered").collect()["details"]
    assert sorted(json.loads(d)["request"] for d in answered) == sorted(ids)
    ask(10)
    assert (
        triggers.watch_once(fail, lambda *_: None, settings=settings) and due(settings) == []
    )  # answered, badly


# Failures, and one at a time


def test_failures_back_off_and_do_not_stop_the_watch(tmp_path):
    settings, stop, told = made(tmp_path, files="*.csv", settle=0), threading.Event(), []
    (tmp_path / "a.csv").write_text("id\n1\n")
    watching = threading.Thread(
        target=triggers.watch,
        args=(fail,),
        kwargs={
            "settings": settings,
            "every": 0.02,
            "stop": stop,
            "on_event": lambda what, why: told.append(what),
        },
    )
    watching.start()
    until(lambda: kinds(settings).count("trigger_failed") == 1)
    time.sleep(1)
    assert kinds(settings).count("trigger_failed") == 1  # it waits 2 s
    until(lambda: kinds(settings).count("trigger_failed") == 2)
    stop.set()
    watching.join()
    [found] = reasons.pending(settings)
    assert found.after - datetime.now(UTC) > timedelta(seconds=3)
    assert "stage ingest failed" in triggers.trigger_table(settings)["failed"].item()
    triggers.fire(finish, [found], settings=settings)
    assert triggers.trigger_table(settings)["failed"].item() is None and due(settings) == []


def test_a_run_that_waits_for_a_person_is_not_started_again_and_again(tmp_path):
    settings, told = made(tmp_path, files="*.csv", settle=0), []
    (tmp_path / "a.csv").write_text("id\n1\n")
    command = "mlops-nb approve m/1 --by NAME"
    held = SimpleNamespace(id="r", waiting=[SimpleNamespace(note="m/1 waits", command=command)])
    for _ in range(3):
        triggers.watch_once(
            lambda parameters: held, lambda *now: told.append(now), settings=settings
        )
    assert told[1] == ("person", f"r: m/1 waits: {command}")
    assert [what for what, _ in told] == ["running", "person", "waiting", "waiting"]
    assert kinds(settings) == ["triggered"]
    (tmp_path / "b.csv").write_text("id\n2\n")
    assert due(settings) == ["t"], "new data are another reason"


def test_a_run_of_somebody_else_is_waited_for(tmp_path):
    settings, told = made(tmp_path, files="*.csv", settle=0), []
    (tmp_path / "a.csv").write_text("id\n1\n")

    def run(parameters):
        with workspace_lock(settings=settings):
            return finish(parameters)

    with workspace_lock(settings=settings):
        triggers.watch_once(run, lambda what, why: told.append(what), settings=settings)
    assert (
        told == ["running", "busy"]
        and due(settings) == ["t"]
        and "trigger_failed" not in kinds(settings)
    )
    triggers.watch_once(run, lambda what, why: None, settings=settings)
    assert due(settings) == []


def test_one_watch_a_workspace(tmp_path):
    settings = create(tmp_path)
    with workspace_lock("watch", settings=settings):
        assert triggers.running_watch(settings)["process"] == os.getpid()
        with pytest.raises(Busy, match="a watch holds this workspace already"):
            triggers.watch(finish, settings=settings)
    assert triggers.running_watch(settings) is None


def test_a_broken_trigger_does_not_stop_the_others(tmp_path):
    settings = create(
        tmp_path,
        **{
            "trigger:db": {"database": "sqlite:///no.db", "query": "x", "watermark": "y"},
            "trigger:new": {"files": "*.csv", "settle": 0},
        },
    )
    (tmp_path / "a.csv").write_text("id\n1\n")
    told = []
    assert triggers.watch_once(finish, lambda what, why: told.append(what), settings=settings)
    assert told == ["error", "running", "done"]
    assert (
        "cannot be read" in triggers.trigger_table(settings).filter(trigger="db")["failed"].item()
    )


def test_a_wrong_schedule_is_said_at_once(tmp_path):
    (tmp_path / "settings.ini").write_text("[trigger:n]\ncron = 61 * * * *\n")
    done = subprocess.run([COMMAND, "watch", "-w", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "cron" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / ".mlops_nb").exists()
    for n, cron in enumerate(("* * * *", "0 0 31 2 *", "at night")):
        with pytest.raises(SettingsError, match="expected five fields"):
            made(tmp_path / str(n), cron=cron)


def test_two_sources_in_one_trigger(tmp_path):
    with pytest.raises(SettingsError, match="got files and cron"):
        made(tmp_path, files="*", cron="* * * * *")


def test_every_kind_is_looked_at():
    assert {*SENSORS} == {"files", "table", "database", "cron", "alert"}


# Over HTTP


@pytest.fixture
def asked(tmp_path):
    "Yield settings, an HTTP client and ann's token, for a workspace that takes requests."
    settings = create(
        tmp_path, serve={"tokens": "ann:s3cret ci:0ther"}, **{"trigger:n": {"cron": "0 3 * * *"}}
    )
    notebook(tmp_path / "nbs/1_ingest.ipynb", "source = 'in/*.csv'", INGEST)
    return (
        settings,
        TestClient(pages.control_app(settings), base_url="http://localhost"),
        {"authorization": "Bearer s3cret"},
    )


def test_a_run_is_asked_for_over_http(asked):
    settings, client, key = asked
    wanted = {"parameters": {"source": "b.csv"}, "note": "nightly"}
    assert client.post("/api/runs", json=wanted).status_code == 401
    answer = client.post("/api/runs", json=wanted, headers=key)
    assert answer.status_code == 202 and answer.json()["watch"].startswith("off")
    [found] = reasons.pending(settings)
    assert found.request == answer.json()["id"] and found.parameters == {"source": "b.csv"}
    for bad in ({"parameters": {"sorce": 1}}, {"parameters": []}, {"params": {}}):
        assert client.post("/api/runs", json=bad, headers=key).status_code == 422
    assert (
        "did you mean `source`"
        in client.post("/api/runs", json={"parameters": {"sorce": 1}}, headers=key).text
    )
    for bad in (
        {"parameters": {"source": "\ud800"}},
        {"parameters": {"\ud800": 1}},
        {"note": "\ud800"},
    ):
        answer = client.post(
            "/api/runs",
            content=json.dumps(wanted | bad),
            headers=key | {"content-type": "application/json"},
        )
        assert answer.status_code == 422 and re.search(
            "unicode string|surrogate pair|ud800", answer.text
        ), bad
    with pytest.raises(TriggerError, match="half of a surrogate pair"):
        reasons.request_run({"source": "\ud800"}, by="ci", settings=settings)
    assert kinds(settings).count("run_requested") == 1
    shown = client.get("/api/triggers", headers=key).json()
    assert shown["watch"] is None and [t["trigger"] for t in shown["triggers"]] == ["n", "manual"]
    assert client.get("/api/triggers").status_code == 401


def test_what_a_stage_gives_cannot_be_asked_for_over_http(tmp_path):
    settings = create(tmp_path)
    notebook(
        tmp_path / "nbs/1_test.ipynb",
        "rows = 1",
        "from mlops_nb import glue\nglue('passed', rows > 1)",
    )
    notebook(tmp_path / "nbs/2_register.ipynb", "passed = False", "passed")
    client = TestClient(pages.control_app(settings), base_url="http://localhost")
    answer = client.post("/api/runs", json={"parameters": {"passed": True}})
    assert (
        answer.status_code == 422 and "`passed` cannot be given: stage test glues it" in answer.text
    )
    assert kinds(settings) == []
    assert client.post("/api/runs", json={"parameters": {"rows": 2}}).status_code == 202


def test_a_run_with_values_of_the_wrong_type_is_refused_at_once(tmp_path):
    settings = create(tmp_path)
    notebook(tmp_path / "nbs/1_train.ipynb", "trials = 3\nrun_id = ''", "trials")
    client = TestClient(pages.control_app(settings), base_url="http://localhost")
    ask = lambda **parameters: client.post("/api/runs", json={"parameters": parameters})
    answer = ask(trials="two")
    assert answer.status_code == 422 and "trials" in answer.text
    answer = ask(run_id="../../elsewhere")
    assert answer.status_code == 422 and "`run_id` cannot be given" in answer.text
    answer = ask(**{f"x{n}": 1 for n in range(80_000)})
    assert answer.status_code == 422 and len(answer.text) < 2000
    assert "`x4`" in answer.text and "no stage has 79995 more of these" in answer.text
    assert kinds(settings) == [] and ask(trials=2).status_code == 202


def test_who_asks_is_known_by_the_token_and_never_by_the_body(asked):
    settings, client, key = asked
    answer = client.post("/api/runs", json={"by": "the director"}, headers=key)
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "expected no `by`: who asks is known by the bearer token, not by what a body says",
    )
    assert "run_requested" not in kinds(settings)
    for header in ("Bearer s3cret", "Bearer 0ther", "bearer   s3cret "):
        assert (
            client.post("/api/runs", json={}, headers={"authorization": header}).status_code == 202
        )
    log = events.history(settings.events, kind="run_requested").collect()
    assert log["by"].to_list() == ["ann", "ci", "ann"]


def test_without_tokens_who_asks_is_the_user_of_the_system(tmp_path):
    settings = create(tmp_path)
    notebook(tmp_path / "nbs/1_ingest.ipynb", "source = 'in/*.csv'", INGEST)
    assert (
        TestClient(pages.control_app(settings), base_url="http://localhost")
        .post("/api/runs", json={})
        .status_code
        == 202
    )
    assert events.newest(settings.events, "run_requested", "trigger:manual")["by"] == events.user()


# On the cluster


@pytest.fixture
def arriving(ray_cluster, tmp_path):
    "A workspace whose one stage ingests the files that arrive."
    settings = create(
        tmp_path / "w",
        workspace={"name": tmp_path.name},
        **{"trigger:new": {"files": "incoming/*.csv", "settle": 0.1}},
    )
    notebook(settings.root / "nbs/1_ingest.ipynb", "source = 'incoming/*.csv'", INGEST)
    (settings.root / "incoming").mkdir()
    return settings


def arrive(settings, number: int, rows: int = 4) -> None:
    "A file, whole at once."
    folder = settings.root / "incoming"
    fresh = folder / f".{number}.part"
    fresh.write_text("id,value\n" + "".join(f"{number * rows + i},{number}\n" for i in range(rows)))
    fresh.rename(folder / f"{number:03}.csv")


def rows(settings) -> list[int]:
    table = settings.table("rows")
    return sorted(lake.scan(table).collect()["id"].to_list()) if lake.table_exists(table) else []


def start(settings) -> subprocess.Popen:
    return subprocess.Popen(
        [COMMAND, "watch", "--no-pages", "--every", "0.1", "-w", settings.root],
        stdout=subprocess.DEVNULL,
        stderr=(settings.root / "watch.err").open("ab"),
        start_new_session=True,
    )


def kill(watch: subprocess.Popen, whole: bool) -> None:
    "As a crash would: the process alone, or with all of its group."
    if whole:
        os.killpg(watch.pid, signal.SIGKILL)
    else:
        watch.kill()
    watch.wait()


@pytest.mark.chaos
def test_killed_watches_take_in_every_file_once(arriving, round_):
    "50 files arrive; at a random moment meanwhile the watch is killed and started again."
    chance = random.Random(round_)

    def send():
        for n in range(50):
            arrive(arriving, n)
            time.sleep(chance.uniform(0, 0.15))

    sender, watch = threading.Thread(target=send), start(arriving)
    until(lambda: triggers.running_watch(arriving))
    sender.start()
    time.sleep(chance.uniform(0, 4))
    kill(watch, whole=bool(round_ % 2))
    watch = start(arriving)
    try:
        sender.join()
        until(lambda: not reasons.pending(arriving) and len(rows(arriving)) >= 200, 90)
        assert rows(arriving) == list(range(200))
    finally:
        kill(watch, whole=True)
    assert watch.returncode == -signal.SIGKILL, "the last one was alive"


def test_watch_ends_cleanly(arriving):
    arrive(arriving, 1)
    watch = start(arriving)
    until(lambda: "triggered" in kinds(arriving))
    assert triggers.running_watch(arriving)["process"] == watch.pid
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 0
    said = (arriving.root / "watch.err").read_text()
    assert "watch ended" in said and "new: 1 files match" in said and "Traceback" not in said, said
    assert triggers.running_watch(arriving) is None


def test_a_detached_watch_goes_on_is_restarted_and_ends(arriving):
    call = lambda *words: subprocess.run(
        [COMMAND, "watch", *words, "-w", arriving.root], capture_output=True, text=True
    )
    arrive(arriving, 0)
    done = call("--detach", "--no-pages", "--every", "0.1")
    assert done.returncode == 0, done.stderr
    until(lambda: rows(arriving) == list(range(4)))
    again = call("--detach", "--no-pages")
    assert again.returncode == 1 and "a watch is on already" in again.stderr
    first = triggers.running_watch(arriving)["process"]
    psutil.Process(first).kill()
    arrive(arriving, 1)
    until(lambda: rows(arriving) == list(range(8)))
    assert triggers.running_watch(arriving)["process"] != first
    assert "ended" in call("--stop").stdout and triggers.running_watch(arriving) is None
    assert "no detached watch" in call("--stop").stdout
    assert "running: new" in (arriving.state / "watch.log").read_text()
