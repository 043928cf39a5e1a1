"""The reference workflow, whole: from data to a live, monitored endpoint.

Also what can be asked of it afterwards.
"""

import json
import re
import shutil
import time

import httpx
import polars as pl
import pytest
from reference_workspaces import kinds, report, run_stages_by_hand, send
from test_cli import ROOT, a_copy, call, fails

from mlops_nb.churn.objective import OBJECTIVE
from mlops_nb.core import events, lake, tracking
from mlops_nb.core.errors import ApprovalError, TrackingError
from mlops_nb.core.settings import create, load_settings
from mlops_nb.data import versions
from mlops_nb.flow.workflow import Workflow
from mlops_nb.models import registry
from mlops_nb.science.pipeline import load_candidate
from mlops_nb.service.monitoring import monitor

CUSTOMER = (
    pl.read_parquet(ROOT / "data/telco_churn.parquet")
    .drop("churn", "customer_id")
    .row(0, named=True)
)


@pytest.fixture(scope="module")
def churn(ray_cluster, tmp_path_factory):
    "A workspace in which the workflow has run, with few trials."
    work = a_copy(
        tmp_path_factory.mktemp("churn") / "my project ü#1"
    )  # a name that a URL would cut
    shutil.copy(ROOT / "pyproject.toml", work)  # for JupyterLab, which exports what is saved
    done = call("run", "-w", work, "-p", "trials=3", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = load_settings(work)
    for wave in (1, 2):
        send_and_look(settings, wave)
    return settings


def send_and_look(settings, wave: int) -> dict:
    "Send a wave of the demo's traffic; return what monitoring says of it."
    sent = call("simulate", "--wave", wave, "-w", settings.root)
    assert sent.returncode == 0 and f"simulated  wave {wave}" in sent.stdout, (
        sent.stdout + sent.stderr
    )
    return json.loads(call("monitor", "churn", "--json", "-w", settings.root).stdout)


def status(settings) -> dict:
    return json.loads(call("status", "--json", "-w", settings.root).stdout)


def told(settings, kind: str) -> list[dict]:
    "The details of every event of a kind."
    return [json.loads(d) for d in events.history(settings.events, kind=kind).collect()["details"]]


def test_status(churn):
    now = status(churn)
    assert {"run", "models", "endpoints", "alerts"} <= now.keys() and now["run"]["state"] == "done"
    (champion,) = [m for m in now["models"] if m["champion"]]
    assert champion["metrics"]["roc_auc"]["high"] >= 0.83 and champion["decided_by"] == "rule"
    (endpoint,) = now["endpoints"]
    assert endpoint["state"] == "ready" and endpoint["proposal"] == "retrain"


def test_each_stage_left_its_notebook(churn):
    for stage in status(churn)["run"]["stages"]:
        assert (churn.root / "storage" / "runs").as_posix() in stage["notebook"]
        html = stage["notebook"].replace(".ipynb", ".html")
        assert "<html" in open(html, encoding="utf-8").read(2000), html


def test_the_first_window_is_quiet_and_the_second_is_not(churn):
    "The look of the run itself found no traffic, and so gave no verdict."
    first, second = told(churn, "monitored")
    assert first["rows"] == second["rows"] >= 100 and first["verdict"] == "quiet"
    logged = lake.scan(churn.table("_predictions", "churn")).filter(stage="production").collect()
    assert logged.height >= first["rows"] + second["rows"]
    assert first["alerts"] == [] and second["alerts"]
    columns = {a["column"] for a in told(churn, "alert_opened")}
    assert "monthly_charges" in columns and columns <= {"monthly_charges", "prediction"}
    assert len(told(churn, "retraining_proposed")) == 1


def test_open_alerts_and_a_line_of_curl_are_said(churn):
    shown = call("status", "-w", churn.root)
    assert re.search(
        r"try churn  curl http://\S+/models/churn/predict .*\"monthly_charges\": ", shown.stdout
    )
    assert "/monitor/churn" in shown.stdout and "proposed for churn  retrain" in shown.stdout
    assert shown.stdout.endswith("stop  mlops-nb down\n")
    look = call("monitor", "churn", "-w", churn.root)
    for done in (shown, look):
        assert done.returncode == 0 and "churn/1: range of monthly_charges, " in done.stdout, (
            done.stderr
        )


def test_a_prediction_is_logged_and_can_be_traced(churn):
    url = status(churn)["endpoints"][0]["url"]
    answer = httpx.post(f"{url}/predict", json={"rows": [CUSTOMER]}).raise_for_status().json()
    mine = answer["predictions"][0]
    assert mine.keys() == {"prediction", "probability", "prediction_id", "model_version"}
    until = time.monotonic() + 60
    while (
        not (
            found := lake.scan(churn.table("_predictions", "churn"))
            .filter(prediction_id=mine["prediction_id"])
            .collect()
        ).height
        and time.monotonic() < until
    ):
        time.sleep(0.2)
    assert found["probability"].to_list() == [mine["probability"]]
    graph = json.loads(
        call(
            "lineage", f"prediction:{mine['prediction_id']}", "--format", "json", "-w", churn.root
        ).stdout
    )
    assert {
        "prediction",
        "model",
        "dataset",
        "source file",
        "commit",
        "candidate",
        "run",
        "report",
        "approved",
    } <= {n["kind"] for n in graph["nodes"]}


def test_bad_requests_are_refused(churn):
    url = status(churn)["endpoints"][0]["url"]
    for body in (
        {"rows": [CUSTOMER | {"tenure": "long"}]},
        {"rows": []},
        {"row": [CUSTOMER]},
        {"rows": [{"tenure": 1}]},
    ):
        answer = httpx.post(f"{url}/predict", json=body)
        assert 400 <= answer.status_code < 500 and answer.json()["error"]["message"]


def test_mlflow_knows_the_data_of_each_stage(churn):
    client, version = tracking.mlflow_client(churn), versions.dataset("churn@0", settings=churn)
    for name, context in (("train", "training"), ("test", "testing")):
        (run,) = client.search_runs(
            [client.get_experiment_by_name(churn.experiment).experiment_id],
            f"tags.`mlops_nb.stage` = '{name}'",
        )
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("churn", version.facts["digest"])
        assert {t.key: t.value for t in used.tags}["mlflow.data.context"] == context


def test_lineage_of_the_champion(churn):
    graph = json.loads(
        call("lineage", "churn@champion", "--format", "json", "-w", churn.root).stdout
    )
    nodes = {n["id"]: n for n in graph["nodes"]}
    assert graph["root"] == "endpoint:churn"
    candidate = next(n for n in graph["nodes"] if n["kind"] == "candidate")
    assert candidate["facts"]["name"] and candidate["facts"]["parameters"]
    assert "sha256" in nodes["file:data/telco_churn.parquet"]["facts"]
    stage_of = [e for e in graph["edges"] if e["how"] == "stage train of"]
    assert stage_of and nodes[stage_of[0]["to"]]["facts"]["state"] == "done"
    shown = call("lineage", "churn@champion", "-w", churn.root).stdout
    assert "approved" in shown and "read from file:data/telco_churn.parquet" in shown
    assert call("lineage", "churn/1", "--format", "mermaid", "-w", churn.root).stdout.startswith(
        "graph LR"
    )
    fails(call("lineage", "churn/7", "-w", churn.root), "churn/7")


def test_running_again_reuses_what_has_not_changed(churn):
    done = call("run", "-w", churn.root, "-p", "trials=3")
    reused = r"reused: objective, ingest, explore, train, test, register, deploy\b"
    assert done.returncode == 0 and re.search(reused, done.stdout)
    assert len(status(churn)["models"]) == 1
    for wave in (1, 2):
        send_and_look(churn, wave)
    assert len(told(churn, "monitored")) == 4


def test_a_person_decides(churn):
    """A rejection is final unless a person says so.

    It is so for the rule, for people, and for the same model under another number.
    """
    assert (
        call("reject", "churn/1", "--by", "carol", "--note", "not yet", "-w", churn.root).returncode
        == 0
    )
    fails(call("deploy", "churn/1", "-w", churn.root), "churn/1", "rejected by carol")
    fails(
        call("approve", "churn/1", "--by", "dave", "-w", churn.root),
        "rejected by carol (not yet)",
        "final",
    )
    again = call(
        "run", "-w", churn.root, "--from", "register", "--to", "register", "--force", timeout=300
    )
    assert again.returncode == 0, again.stdout + again.stderr
    with pytest.raises(
        ApprovalError, match="churn/2 is the same model as churn/1.*only a person can approve"
    ):
        registry.approve("churn/2", settings=churn)
    assert call("approve", "churn/2", "--by", "dave", "-w", churn.root).returncode == 0
    decision = events.newest(churn.events, "approved", "churn/2")
    assert (decision["by"], decision["details"]["user"]) == ("dave", events.user())
    assert call("deploy", "churn/2", "-w", churn.root).returncode == 0
    assert "champion 2: 100 %" in call("status", "-w", churn.root).stdout
    fails(
        call("rollback", "churn", "-w", churn.root),
        "churn/1 was served before, but carol rejected it since",
    )
    fails(call("approve", "churn/9", "--by", "dave", "-w", churn.root), "churn/9", "churn/1")
    fails(call("rollback", "nothing", "-w", churn.root), "nothing")


def test_a_run_has_one_objective():
    flow = Workflow.discover(ROOT / "nbs" / "churn")
    takers = [
        stage for stage, takes in flow.wiring.items() if takes.get("objective") == "objective"
    ]
    assert takers == ["ingest", "explore", "train", "test", "register"]
    users = [s.name for s in flow.stages if any("Objective(" in code for code in s.code.values())]
    assert users == ["objective", *takers]
    [problem] = flow.check({"objective": {"name": "churn"}})
    assert "`objective` cannot be given: stage objective glues it" in str(problem)


@pytest.mark.parametrize(
    "read",
    [load_candidate, lambda uri, settings: registry.tested(uri, OBJECTIVE, settings=settings)],
)
def test_a_stage_run_by_hand_without_what_comes_before_says_so(read, tmp_path):
    "As `4_test` in JupyterLab, whose parameters have not been filled in."
    settings = create(tmp_path / "w")
    with pytest.raises(
        TrackingError, match="expected a URI such as runs:/.*output of an earlier stage"
    ):
        read("", settings=settings)


def test_traffic_is_simulated_by_no_stage():
    flow = Workflow.discover(ROOT / "nbs" / "churn")
    assert [s.name for s in flow.stages] == [
        "objective",
        "ingest",
        "explore",
        "train",
        "test",
        "register",
        "deploy",
        "monitor",
    ]
    assert (ROOT / "nbs/churn/simulate.ipynb").is_file() and flow.check() == [] == list(
        flow.left_out
    )


def test_a_wave_that_there_is_not_is_refused(churn):
    fails(
        call("simulate", "--wave", 3, "-w", churn.root),
        "wave = 3: expected 1 or 2",
        "simulate_1.ipynb",
    )
    fails(call("simulate", "--wave", 0, "-w", churn.root), "greater than or equal to 1", code=2)


def test_parameters_that_would_skip_the_gate_or_a_person_are_refused(churn):
    for name in ("approval=rule", "passed=true", "warranted=true", 'objective={"name": "churn"}'):
        fails(call("run", "-w", churn.root, "-p", name), name.partition("=")[0])
    other = call(
        "run",
        "-w",
        churn.root,
        "-p",
        "trials=3",
        "-p",
        "champion=nobody@champion",
        "--to",
        "test",
        timeout=300,
    )
    fails(other, "expected churn@champion")


def test_pages_in_a_browser(churn, chromium):
    from playwright.sync_api import sync_playwright

    base = status(churn)["endpoints"][0]["url"].rsplit("/models/", 1)[0]
    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page, problems = browser.new_page(), []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on(
            "request",
            lambda r: problems.append(r.url) if not r.url.startswith((base, "data:")) else None,
        )
        page.goto(f"{base}/")
        assert (
            page.get_by_role("heading", name="Endpoints").is_visible()
            and page.get_by_text("churn/2 ★").is_visible()
        )
        page.get_by_role("link", name="report").click()
        assert (
            "churn/" in page.locator("header").first.text_content()
            and page.locator("img, svg").count() > 3
        )
        page.goto(f"{base}/models/churn/docs")
        assert page.get_by_text("monthly_charges").first.is_visible()
        browser.close()
    assert not problems, problems


def test_monitoring_from_the_command_line(churn):
    done = call("monitor", "churn", "--json", "-w", churn.root)
    assert done.returncode == 0 and json.loads(done.stdout)["model"] == "churn"


def test_reported_labels_are_judged_and_wrong_ones_are_refused(churn):
    rows = versions.dataset("churn", settings=churn).scan("test").collect().sample(400, seed=0)
    answers = send(churn, "churn", rows)
    ids = answers["prediction_id"].to_list()
    assert report(churn, "churn", ids, rows["churn"].to_list()).json() == {"accepted": 400}
    for value in ("yes", "Maybe", True, 1, None):
        wrong = report(churn, "churn", ids[:1], [value])
        assert wrong.status_code == 422 and "No or Yes" in wrong.text, wrong.text
    run = monitor("churn", settings=churn)
    assert run.judged["2"].verdict.labelled == 400
    assert not {kind for kind, _ in kinds(run)} & {"performance", "errors"}


@pytest.mark.browser
def test_every_stage_runs_by_hand_in_jupyterlab(churn, chromium):
    "The last test here: it registers another version. Few trials, as in the run."
    train = churn.notebooks / "3_train.ipynb"
    text = train.read_text()
    train.write_text(text.replace("trials = 24", "trials = 3"))
    assert train.read_text() != text
    run_stages_by_hand(churn, "churn")
