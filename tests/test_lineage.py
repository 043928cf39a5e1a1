"A prediction is traced with the whole answer: of two labels, of several, of a number."

import json
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from make_old_workspace import unpack
from test_cli import call

from mlops_nb.core import events, lake
from mlops_nb.core.settings import create, load_settings
from mlops_nb.flow.lineage import trace
from mlops_nb.flow.lineage_graph import as_json, as_text
from mlops_nb.science.predictions import Predictions
from mlops_nb.science.task import Binary, Multiclass, Regression
from mlops_nb.service.serving.log import TABLES, PredictionLog

BINARY = Binary(labels=("No", "Yes"))
SEVERAL = Multiclass(labels=("virginica", "setosa", "versicolor"))
NUMBER = Regression(mean=10.0, half_width=40.25)
REGISTERED = {
    "bundle": "5f2c",
    "dataset": {"ref": "t@0"},
    "git": {"commit": None, "dirty": False},
    "library": "77aa",
    "candidate": "runs:/9c1/candidate",
    "runs": {"candidate": "9c1"},
    "report": "runs:/9c2/report",
}


@pytest.fixture
def space(tmp_path):
    return create(tmp_path)


def rows_of(task, predictions):
    "Return the rows of the log of a deployed version, with ids p0, p1 and so on."
    n = len(predictions)
    columns = {
        "prediction_id": [f"p{i}" for i in range(n)],
        "at": [1_800_000_000_000_000] * n,
        "model_version": ["1"] * n,
        "signature": ["s"] * n,
        "inputs": ['{"a": 1}'] * n,
        "latency_ms": [1.0] * n,
        "stage": ["production"] * n,
    }
    return columns | task.log_columns(predictions)


def deployed(space, **facts):
    "Record what lineage reads of a version that is served."
    events.record(space.events, "registered", "t/1", by="ann", **REGISTERED, **facts)
    state = {"versions": {"1": 100}, "bundles": {}, "after": None}
    events.record(space.events, "deployed", "t", by="ann", **state)


def logged(space, task, predictions):
    "Log predictions as an endpoint does."
    deployed(space, task=task.kind, labels=list(task.labels))
    log = PredictionLog(space, "t")
    log.append(rows_of(task, predictions))
    log.flush()


def facts(space, id_="p0"):
    "Return the facts of a prediction, as its JSON has them."
    graph = json.loads(as_json(trace(f"prediction:{id_}", settings=space)))
    (node,) = [node for node in graph["nodes"] if node["id"] == f"prediction:{id_}"]
    return {name: fact for name, fact in node["facts"].items() if name not in ("at", "inputs")}


def test_a_binary_prediction_has_its_label_and_probability(space):
    logged(space, BINARY, BINARY.from_positive(np.array([0.75])))
    assert facts(space) == {"prediction": "Yes", "probability": 0.75}


def test_a_prediction_of_several_labels_has_the_probability_of_each(space):
    logged(space, SEVERAL, SEVERAL.decided(np.array([[0.25, 0.5, 0.25], [0.0, 0.125, 0.875]])))
    every = {"virginica": 0.0, "setosa": 0.125, "versicolor": 0.875}
    answer = {"prediction": "versicolor", "probability": 0.875, "probabilities": every}
    assert facts(space, "p1") == answer
    lineage = trace("prediction:p0", settings=space)
    assert "probabilities: virginica 0.25, setosa 0.5, versicolor 0.25" in as_text(lineage)
    assert "virginica 0.25, setosa 0.5" in lineage._repr_html_()


def test_a_number_has_its_interval(space):
    logged(space, NUMBER, NUMBER.with_intervals(np.array([123456.5])))
    ends = {"low": 123416.25, "high": 123496.75, "interval": "90%"}
    assert facts(space) == {"prediction": 123456.5} | ends
    lineage = trace("prediction:p0", settings=space)
    assert "low: 123416" in as_text(lineage) and "high: 123497" in as_text(lineage)
    assert "123416" in lineage._repr_html_() and "90%" in lineage._repr_html_()


def test_a_number_without_an_interval_has_none(space):
    logged(space, NUMBER, Predictions(numbers=np.array([0.0])))
    assert facts(space) == {"prediction": 0.0}


@pytest.mark.parametrize(
    ("task", "predictions"),
    [
        (BINARY, BINARY.from_positive(np.array([np.nan]))),
        (SEVERAL, SEVERAL.decided(np.array([[np.nan, 0.5, 0.5]]))),
        (NUMBER, NUMBER.with_intervals(np.array([np.inf]))),
    ],
)
def test_what_is_no_prediction_is_shown_as_unusable_and_in_valid_json(space, task, predictions):
    columns = task.log_columns(predictions) | {"prediction": [None]}
    logged(space, task, predictions)
    lake.append(
        space.table("_predictions", "t"),
        pl.DataFrame(
            rows_of(task, predictions) | columns | {"prediction_id": ["bad"]},
            schema=TABLES["_predictions"],
        ),
    )
    text = as_json(trace("prediction:bad", settings=space))
    assert "NaN" not in text and "Infinity" not in text
    shown = facts(space, "bad")
    assert shown["unusable"] is True and "prediction" not in shown


def test_a_log_of_an_earlier_release_has_label_and_probability(space):
    deployed(space)
    schema = dict(list(TABLES["_predictions"].items())[:9])
    columns = rows_of(BINARY, BINARY.from_positive(np.array([0.25])))
    rows = pl.DataFrame({name: columns[name] for name in schema}, schema=schema)
    lake.append(space.table("_predictions", "t"), rows)
    assert facts(space) == {"prediction": "No", "probability": 0.25}


def test_a_prediction_of_an_old_workspace_is_traced_on_the_command_line(tmp_path):
    old = load_settings(unpack(tmp_path / "club"))
    row = lake.scan(old.table("_predictions", "club")).head(1).collect().row(0, named=True)
    id_ = f"prediction:{row['prediction_id']}"
    done = call("lineage", id_, "--format", "json", "-w", old.root)
    assert done.returncode == 0, done.stdout + done.stderr
    (node,) = [node for node in json.loads(done.stdout)["nodes"] if node["id"] == id_]
    assert node["facts"]["prediction"] == row["prediction"]
    assert node["facts"]["probability"] == row["probability"]
    assert datetime.fromisoformat(node["facts"]["at"]) == row["at"].astimezone(UTC)
