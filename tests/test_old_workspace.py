"A workspace made by an earlier release opens: its records are read, and more are added."

import json
import re

import mlflow
import polars as pl
import pytest
from make_old_workspace import members, unpack
from test_cli import call

from mlops_nb.core import events, lake
from mlops_nb.core.settings import load_settings
from mlops_nb.data import versions
from mlops_nb.data.ingest import ingest
from mlops_nb.models import registry
from mlops_nb.service import monitoring
from mlops_nb.service.monitoring.alerts import open_alerts
from mlops_nb.service.serving.log import TABLES, recover


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    "The workspace, unpacked; tests below add to it."
    return load_settings(unpack(tmp_path_factory.mktemp("old") / "club"))


def test_status_shows_the_state_of_an_old_workspace(old):
    done = call("status", "--json", "-w", old.root)
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads(done.stdout)
    assert state["run"]["state"] == "failed"
    assert {m["ref"]: (m["champion"], m["decision"], m["decided_by"]) for m in state["models"]} == {
        "club/1": (True, "approved", "ann"),
        "club/2": (False, "rejected", "bob"),
    }
    assert [(e["model"], list(e["versions"]), e["proposal"]) for e in state["endpoints"]] == [
        ("club", ["1"], None)
    ]
    assert {(a["kind"], a["column"]) for a in state["alerts"]} == {
        ("drift", "fee"),
        ("drift", "prediction"),
        ("range", "fee"),
    }


def test_the_history_of_an_old_workspace_is_complete_and_in_order(old):
    kinds = events.history(old.events).collect()["kind"].to_list()
    decisions = [
        "registered",
        "approved",
        "deployed",
        "monitored",
        "registered",
        "approved",
        "deployed",
        "deployed",
        "rejected",
    ]
    assert [k for k in kinds if k in decisions] == [*decisions[:4], *decisions[3:]]
    newest = events.newest(old.events, "deployed", "club")
    assert newest["by"] == "ann" and list(newest["details"]["versions"]) == ["1"]


def test_lineage_of_the_champion(old):
    done = call("lineage", "club@champion", "--format", "json", "-w", old.root)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {n["kind"] for n in json.loads(done.stdout)["nodes"]}
    assert {"model", "dataset", "source file", "candidate", "report", "approved"} <= kinds


def test_the_dataset_is_read_and_grows(old):
    before = versions.dataset("club@0", settings=old)
    rows = before.scan().collect()
    assert (rows.height, rows["member"].n_unique()) == (600, 600)
    assert before.profile().rows == rows.filter(_split="train").height
    more = members(50, 9)
    more.write_csv(old.root / "data" / "more.csv")
    after = ingest("club", str(old.root / "data" / "more.csv"), settings=old)
    assert after.parent.ref == before.ref
    assert after.scan().collect().height == 650
    assert versions.dataset("club@0", settings=old).scan().collect().equals(rows)
    assert ingest("club", "data/members.csv", settings=old).ref == after.ref


def test_the_champion_is_found_loaded_and_predicts(old):
    version = registry.resolve("club@champion", settings=old)
    assert (version.ref, registry.approval("club/1", settings=old).by) == ("club/1", "ann")
    log = lake.scan(old.table("_predictions", "club")).filter(model_version="1").head(20).collect()
    bundle = version.bundle(old)
    inputs = bundle.signature.frame([json.loads(text) for text in log["inputs"]])
    again = bundle.pipeline.predict_proba(inputs)[:, 1]
    assert again.tolist() == pytest.approx(log["probability"].to_list(), abs=1e-9)


def test_mlflow_loads_the_champion_by_the_loader_that_an_earlier_release_named(old, monkeypatch):
    monkeypatch.chdir(old.root)
    bundle = registry.resolve("club/1", settings=old).bundle(old)
    assert re.search("loader_module: mlops_nb[.]registry", (bundle.path / "MLmodel").read_text())
    assert bundle.other_framework["registered"] is None
    rows = members(30, 4).drop("member", "left").to_pandas()
    model = mlflow.pyfunc.load_model(str(bundle.path))
    probability = bundle.pipeline.predict_proba(bundle.signature.conform(members(30, 4)))[:, 1]
    answer = model.predict(rows)
    assert list(answer["prediction"]) == [
        "yes" if p >= bundle.objective.decision_threshold else "no" for p in probability
    ]
    assert list(answer["probability"]) == pytest.approx(probability.tolist())


def test_a_bundle_without_a_task_is_binary_and_predicts_as_it_logged(old):
    bundle = registry.resolve("club/1", settings=old).bundle(old)
    assert "task" not in bundle.candidate
    assert (bundle.task.kind, bundle.labels) == ("binary", ("no", "yes"))
    assert bundle.task.threshold == bundle.objective.decision_threshold
    log = lake.scan(old.table("_predictions", "club")).filter(model_version="1").collect()
    logged = bundle.task.from_log(log)
    inputs = bundle.signature.frame([json.loads(text) for text in log["inputs"]])
    assert logged.positive == pytest.approx(bundle.predict(inputs).positive)
    assert logged.labels == bundle.predict(inputs).labels


def test_the_old_log_is_taken_over_and_its_table_gets_the_new_columns(tmp_path):
    settings = load_settings(unpack(tmp_path / "club"))
    table = settings.table("_predictions", "club")
    before = lake.scan(table).collect()
    assert set(TABLES["_predictions"]) - set(before.columns) == {"scores", "number", "low", "high"}
    assert recover("club", settings=settings) == 20
    after = lake.scan(table).collect()
    assert dict(after.schema) == TABLES["_predictions"]
    assert after.height == before.height + 20 and after["scores"].null_count() == after.height
    same = after.select(before.columns).join(before, on="prediction_id", how="semi")
    assert same.sort("prediction_id").equals(before.sort("prediction_id"))


def test_what_was_rejected_stays_rejected(old):
    assert registry.approval("club/2", settings=old).kind == "rejected"


def test_predictions_that_no_pass_has_judged_are_judged_once(old):
    log = lambda: events.history(old.events, "club", "monitored").collect().height
    judged, opened = log(), open_alerts("club", settings=old)
    assert judged == 2
    result = monitoring.monitor("club", settings=old)
    assert result.rows == 140  # 120 that were moved to the table, 20 that were not
    columns = {(a["kind"], a["column"]) for a in result.alarms}
    assert {("drift", "fee"), ("drift", "prediction")} <= columns
    assert {a.id for a in opened} <= {a.id for a in open_alerts("club", settings=old)}
    assert set(result.open_alerts) == set(open_alerts("club", settings=old))
    table = (
        lake.scan(old.table("_predictions", "club"))
        .filter(pl.col("stage") == "production")
        .collect()
    )
    assert table["prediction_id"].n_unique() == table.height == 440
    assert monitoring.monitor("club", settings=old).rows == 0
    assert log() == 3


def test_a_decision_in_an_old_workspace_is_added_as_the_last_event(old):
    events_before = events.history(old.events).collect()
    done = call("reject", "club/1", "--by", "carol", "--note", "too old", "-w", old.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert registry.approval("club/1", settings=old).kind == "rejected"
    after = events.history(old.events).collect()
    assert after.height == events_before.height + 1
    assert after["id"].to_list()[:-1] == events_before["id"].to_list()
