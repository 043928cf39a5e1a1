"""Two more tables through the whole workflow: penguins (several labels) and diamonds (a number).

Each from its CSV file, with its row numbers and missing values, to a live endpoint, labels
reported in every spelling, and monitoring. Churn, with two labels, is in `test_churn`.
"""

import json

import polars as pl
import pytest
from reference_workspaces import kinds, make, report, run_stages_by_hand, send
from test_cli import call

from mlops_nb.core import lake
from mlops_nb.core.settings import load_settings
from mlops_nb.data.versions import dataset
from mlops_nb.models import registry
from mlops_nb.service.monitoring import monitor
from mlops_nb.service.monitoring.traffic import settle

ROWS = {"penguins": 344, "diamonds": 6000}


def workspace(name: str, folder):
    "Return the settings of a workspace in which the workflow of a table has run."
    work = make(name, folder / name, rows=ROWS[name])
    done = call("run", "-w", work, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "_row, never a feature" in done.stdout
    return load_settings(work)


@pytest.fixture(scope="module")
def penguins(ray_cluster, tmp_path_factory):
    return workspace("penguins", tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def diamonds(ray_cluster, tmp_path_factory):
    return workspace("diamonds", tmp_path_factory.mktemp("reference"))


def test_penguins_are_told_apart(penguins):
    version = registry.resolve("penguins@champion", settings=penguins)
    bundle = version.bundle(penguins)
    assert bundle.task.labels == ("Adelie", "Chinstrap", "Gentoo")
    assert bundle.objective.task == "multiclass" and bundle.objective.metric == "log_loss"
    assert bundle.report["metrics"]["accuracy"]["value"] > 0.95
    names = {column.name for column in bundle.signature.columns}
    assert not names & {"year", "rownames", "_row", "species"}
    assert bundle.signature.unused["year"].startswith("when it was measured")


def test_penguins_from_the_endpoint_to_monitoring(penguins):
    rows = dataset("penguins", settings=penguins).scan().collect()
    answers = send(penguins, "penguins", rows)
    first = answers.row(0, named=True)
    assert first["prediction"] in first["probabilities"]
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    ids = answers["prediction_id"].to_list()
    assert report(penguins, "penguins", ids, rows["species"].to_list()).json() == {"accepted": 344}
    wrong = report(penguins, "penguins", ids[:1], ["Emperor"])
    assert wrong.status_code == 422 and "Adelie or Chinstrap or Gentoo" in wrong.text
    run = monitor("penguins", settings=penguins)
    assert run.rows == run.judged["1"].verdict.labelled == 344
    assert not {kind for kind, _ in kinds(run)} & {"performance", "errors"}
    table = lake.scan(penguins.table("_predictions", "penguins")).filter(stage="production")
    logged = table.collect()
    assert logged["scores"].list.len().unique().to_list() == [3]


def test_a_penguin_that_changes_is_noticed(penguins):
    rows = dataset("penguins", settings=penguins).scan().collect()
    long = rows.with_columns(pl.col("flipper_length_mm") * 1.3)
    send(penguins, "penguins", long)
    columns = {column for _, column in kinds(monitor("penguins", settings=penguins))}
    assert "flipper_length_mm" in columns


def test_diamonds_are_priced_with_intervals(diamonds):
    bundle = registry.resolve("diamonds@champion", settings=diamonds).bundle(diamonds)
    assert bundle.task.kind == "regression" and bundle.task.half_width
    assert bundle.report["metrics"]["mae"]["value"] < 200
    assert 0.86 < bundle.report["metrics"]["coverage"]["value"] < 0.95


def test_diamonds_from_the_endpoint_to_monitoring(diamonds):
    rows = dataset("diamonds", settings=diamonds).scan("test").collect().sample(400, seed=0)
    answers = send(diamonds, "diamonds", rows)
    price = rows["price"].to_numpy()
    inside = (answers["low"].to_numpy() <= price) & (price <= answers["high"].to_numpy())
    assert 0.84 < inside.mean() < 0.97
    spelled = [str(p) if i % 3 else float(p) if i % 2 else int(p) for i, p in enumerate(price)]
    ids = answers["prediction_id"].to_list()
    assert report(diamonds, "diamonds", ids, spelled).json() == {"accepted": 400}
    for value in (True, "cheap", None, "inf"):
        wrong = report(diamonds, "diamonds", ids[:1], [value])
        assert wrong.status_code == 422 and "a finite number" in wrong.text
    run = monitor("diamonds", settings=diamonds)
    assert run.judged["1"].verdict.labelled == 400
    assert not {kind for kind, _ in kinds(run)} & {"performance", "errors"}


def test_prices_that_rise_are_noticed(diamonds):
    rows = dataset("diamonds", settings=diamonds).scan("test").collect().sample(400, seed=0)
    answers = send(diamonds, "diamonds", rows)
    dearer = (rows["price"] * 1.3).to_list()
    ids = answers["prediction_id"].to_list()
    assert report(diamonds, "diamonds", ids, dearer).is_success
    assert "performance" in {kind for kind, _ in kinds(monitor("diamonds", settings=diamonds))}


def test_where_a_price_came_from(diamonds):
    rows = dataset("diamonds", settings=diamonds).scan("test").head(1).collect()
    (id_,) = send(diamonds, "diamonds", rows)["prediction_id"].to_list()
    settle("diamonds", settings=diamonds)
    done = call("lineage", f"prediction:{id_}", "--format", "json", "-w", diamonds.root)
    nodes = {node["kind"]: node["facts"] for node in json.loads(done.stdout)["nodes"]}
    assert {"prediction", "model", "dataset", "run", "approved"} <= nodes.keys()
    answer = nodes["prediction"]
    assert answer["low"] < answer["prediction"] < answer["high"]


@pytest.mark.soak
@pytest.mark.browser
@pytest.mark.parametrize("name", ["penguins", "diamonds"])
def test_every_stage_runs_by_hand_in_jupyterlab(name, ray_cluster, chromium, request):
    "It asks for the cluster by name: its tables are looked up, and so are not seen by the groups."
    run_stages_by_hand(request.getfixturevalue(name), name)
