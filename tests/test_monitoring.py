"""Monitoring: what a window's questions answer, and what is kept.

Windows lose and repeat nothing; alerts survive crashes and races.
"""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlops_nb.core import events, lake
from mlops_nb.core.errors import EventConflict
from mlops_nb.core.masking import Webhook
from mlops_nb.core.settings import create
from mlops_nb.data.profiles.profiling import Profile, profile
from mlops_nb.science.binary_metrics import auc, measure_prediction
from mlops_nb.science.metrics import fairness
from mlops_nb.science.objective import Objective, with_decision
from mlops_nb.science.signature import Signature
from mlops_nb.science.task import Binary
from mlops_nb.service import monitoring
from mlops_nb.service.monitoring import checks, inputs, monitor, novelty
from mlops_nb.service.monitoring import performance as labelled_performance
from mlops_nb.service.monitoring.alerts import Alert, open_alerts
from mlops_nb.service.monitoring.questions import corrected
from mlops_nb.service.monitoring.report import MonitoringRun
from mlops_nb.service.monitoring.window import Window, logged_window
from mlops_nb.service.serving.log import TABLES, PredictionLog

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
OBJECTIVE = Objective(
    name="m", question="Who leaves?", target="y", positive="Yes", key="id", protected=["sex"]
)


def people(n: int, seed: int, *, shift: float = 0) -> pl.DataFrame:
    "Inputs, and in `y` and `prediction` what came of them and what the model thought."
    rng = np.random.default_rng(seed)
    age, plan = rng.normal(40, 9, n) + shift, rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    p = 1 / (1 + np.exp(-(age - 40) / 9 - (plan == "a")))
    return pl.DataFrame(
        {
            "age": age,
            "plan": plan,
            "sex": rng.choice(["f", "m"], n),
            "lines": rng.integers(1, 4, n),
            "since": [NOON - timedelta(days=int(d)) for d in rng.integers(0, 999, n)],
            "prediction": p,
            "y": np.where(rng.random(n) < p, "Yes", "No"),
        },
        schema_overrides={"since": pl.Datetime("us", "UTC")},
    )


INPUTS = people(1, 0).drop("prediction", "y").columns
TEST = people(2000, 99)
TRUTH, THOUGHT = (TEST["y"] == "Yes").to_numpy().astype(int), TEST["prediction"].to_numpy()
REPORT = {
    "metrics": {"roc_auc": auc(TRUTH, THOUGHT).model_dump()},
    "threshold": 0.5,
    "fairness": fairness(TEST.select("sex"), TRUTH, THOUGHT, 0.5).to_dicts(),
}
REFERENCE = profile(people(4000, 98).select(INPUTS)).merge(profile(TEST.select("prediction")))
SIGNATURE = Signature.of(people(500, 97).select(INPUTS))
BUNDLE = SimpleNamespace(
    signature=SIGNATURE,
    profile=REFERENCE,
    objective=OBJECTIVE,
    report=REPORT,
    task=with_decision(Binary(labels=("No", "Yes")), OBJECTIVE),
)


@pytest.fixture
def space(tmp_path, monkeypatch):
    "A workspace whose registry knows one bundle for every version."
    asked = []
    resolve = lambda ref, *, settings: (
        asked.append(ref) or SimpleNamespace(bundle=lambda settings: BUNDLE)
    )
    monkeypatch.setattr(monitoring.registry, "resolve", resolve)
    settings = create(tmp_path, monitor={"min_rows": 100})
    return SimpleNamespace(settings=settings, asked=asked, batch=0)


def serve(
    space, frame: pl.DataFrame, hour: float, *, version="1", stage="production"
) -> pl.DataFrame:
    "Log predictions, a second apart."
    n, space.batch = frame.height, space.batch + 1
    rows = frame.with_columns(
        prediction_id=pl.format(f"{space.batch}-{{}}", pl.int_range(n)),
        model_version=pl.lit(version),
        at=pl.lit(NOON + timedelta(hours=hour)) + pl.duration(seconds=pl.int_range(n)),
        signature=pl.lit(SIGNATURE.digest),
        stage=pl.lit(stage),
        inputs=pl.struct(INPUTS).struct.json_encode(),
        probability="prediction",
        latency_ms=pl.lit(2.0),
        prediction=pl.lit("Yes"),
        **dict.fromkeys(("scores", "number", "low", "high"), pl.lit(None)),
    ).select(pl.col(c).cast(t) for c, t in TABLES["_predictions"].items())
    lake.append(space.settings.table("_predictions", "m"), rows)
    return rows.with_columns(y=frame["y"])


def tell(space, rows: pl.DataFrame, hour: float) -> None:
    "Labels come."
    at = pl.lit(NOON + timedelta(hours=hour)).cast(pl.Datetime("us", "UTC"))
    lake.append(
        space.settings.table("_feedback", "m"), rows.select("prediction_id", at=at, label="y")
    )


def run(space, hour: float) -> MonitoringRun:
    return monitor("m", settings=space.settings, now=NOON + timedelta(hours=hour))


def kinds(space) -> list[str]:
    return events.history(space.settings.events, "m").collect()["kind"].to_list()


TASK = Binary(labels=("No", "Yes"))


def window(frame: pl.DataFrame) -> Window:
    "The people with what the model thought and what came of them."
    inputs = frame.drop("prediction", "y", strict=False)
    truth = (frame["y"] == "Yes").to_numpy().astype(int)
    return Window(TASK, inputs, TASK.from_positive(frame["prediction"].to_numpy()), truth)


def judged(
    frame: pl.DataFrame, labels: bool = True, report: dict = REPORT, **changes
) -> checks.Verdict:
    whole = window(frame)
    labelled = whole if labels else whole.take([])
    return checks.judge(whole, labelled, REFERENCE, OBJECTIVE.model_copy(update=changes), report)


def alarms(found: checks.Verdict) -> set[tuple[str, str]]:
    return {(a["kind"], a["column"]) for a in found.alarms}


# -- the questions ---------------------------------------------------------------------------------


def test_quiet_windows_stay_quiet():
    false = [seed for seed in range(80) if judged(people(600, seed)).alarms]
    assert len(false) <= 3, false


def asked(frame: pl.DataFrame, reference: Profile) -> pl.DataFrame:
    "What is asked of a window's inputs, corrected at 1 %."
    drifts = checks.drift(profile(frame), reference)
    return corrected(
        [
            *inputs.drifting(drifts),
            *inputs.missing(frame, reference),
            *inputs.outside(frame, reference),
            *inputs.unseen(frame, reference),
        ],
        0.01,
    )


def rare(rng, rows: int, nulls: float) -> pl.DataFrame:
    "A column of numbers and one of words, both mostly null."
    values = {
        "number": rng.normal(size=rows),
        "word": rng.choice(["a", "b", "c"], rows, p=[0.7, 0.2, 0.1]),
    }
    gone = {name: pl.Series(rng.random(rows) < nulls) for name in values}
    return pl.DataFrame(values).with_columns(
        pl.when(gone[c]).then(None).otherwise(c).alias(c) for c in values
    )


@pytest.mark.parametrize(
    "nulls, rows", [(0.9, 100), (0.98, 100), (0.98, 400), (0.995, 100), (0.995, 1000)]
)
def test_quiet_windows_of_sparse_columns_stay_quiet(nulls, rows):
    rng = np.random.default_rng(7)
    false = sum(
        asked(rare(rng, rows, nulls), profile(rare(rng, 2000, nulls)))["alarm"].any()
        for _ in range(150)
    )
    assert false <= 6  # of 150 at 1 %: more than 6 have a chance of 0.0003


def test_a_sparse_column_that_is_filled_or_emptied_is_an_alarm():
    rng = np.random.default_rng(8)
    reference = profile(rare(rng, 2000, 0.9))
    quiet = rare(rng, 300, 0.9)
    for changed in (
        quiet.with_columns(number=pl.lit(None, pl.Float64)),
        quiet.with_columns(number=pl.lit(0.5)),
    ):
        answers = asked(changed, reference).filter("alarm")
        assert ("nulls", "number") in set(answers.select("kind", "column").iter_rows())


@pytest.mark.parametrize("kind", ["alike", "Zipf"])
def test_new_categories_by_chance_are_no_alarm(kind):
    rng, number = np.random.default_rng(9), 400
    weights = np.ones(number) if kind == "alike" else 1 / np.arange(1, number + 1) ** 1.1

    def column(rows: int) -> pl.DataFrame:
        return pl.DataFrame({"c": rng.choice(number, rows, p=weights / weights.sum())}).cast(
            pl.String
        )

    p = np.array(
        [inputs.unseen(column(200), profile(column(1000)))[0]["p_value"] for _ in range(600)]
    )
    assert (p < 0.00025).sum() <= 2  # 0.15 are promised at most
    assert (p < 0.01).sum() <= 14  # 6 are


def test_a_new_category_of_five_percent_is_an_alarm():
    rng = np.random.default_rng(10)
    reference = profile(pl.DataFrame({"c": rng.choice(400, 4000)}).cast(pl.String))
    frame = pl.DataFrame({"c": ["new"] * 10 + [str(c) for c in rng.choice(400, 190)]})
    assert inputs.unseen(frame, reference)[0]["p_value"] < 0.00025
    assert inputs.unseen(frame[9:], reference)[0]["p_value"] > 0.01


def test_what_changed_is_named_and_nothing_else():
    frame = people(1000, 1)
    assert alarms(judged(frame.with_columns(age=pl.col("age") + 5))) >= {("drift", "age")}
    assert alarms(judged(frame.with_columns(plan=pl.lit("a")))) == {("drift", "plan")}
    assert ("unseen", "plan") in alarms(
        judged(
            frame.with_columns(
                plan=pl.when(pl.int_range(pl.len()) < 8).then(pl.lit("z")).otherwise("plan")
            )
        )
    )
    assert alarms(
        judged(
            frame.with_columns(age=pl.when(pl.int_range(pl.len()) < 9).then(500.0).otherwise("age"))
        )
    ) == {("range", "age")}
    assert ("nulls", "lines") in alarms(
        judged(
            frame.with_columns(
                lines=pl.when(pl.int_range(pl.len()) < 9).then(None).otherwise("lines")
            )
        )
    )
    assert alarms(judged(frame.drop("lines").with_columns(lines=pl.lit("2")))) == {
        ("schema", "lines")
    }


def test_one_strange_value_is_no_alarm():
    frame, first = people(1000, 2), pl.int_range(pl.len()) == 0
    strange = frame.with_columns(
        age=pl.when(first).then(500.0).otherwise("age"),
        plan=pl.when(first).then(pl.lit("z")).otherwise("plan"),
        lines=pl.when(first).then(None).otherwise("lines"),
    )
    found = judged(strange)
    assert not found.alarms
    assert {
        q["kind"] for q in found.table.to_dicts() if q["value"] == 1 and q["reference"] == 0
    } == {"range", "unseen"}


def test_a_prediction_without_probability_is_a_fault():
    for wrong in (None, float("nan"), 1.5, -0.1):
        frame = people(300, 3).with_columns(
            prediction=pl.when(pl.int_range(pl.len()) == 0)
            .then(wrong)
            .otherwise("prediction")
            .cast(pl.Float64)
        )
        assert alarms(judged(frame)) == {("errors", "prediction")}


def test_performance_is_judged_only_with_labels_of_both_classes():
    frame = people(400, 4)
    coin = frame.with_columns(y=pl.Series(np.random.default_rng(0).choice(["Yes", "No"], 400)))
    assert ("performance", "roc_auc") in alarms(judged(coin))
    assert judged(coin, labels=False).labelled == 0
    for found in (
        judged(coin, labels=False),
        judged(frame.with_columns(y=pl.lit("Yes"))),
        judged(coin, report={"passed": True}),
    ):
        assert "performance" not in found.table["kind"]


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "brier", "log_loss"])
def test_worse_is_worse_in_every_metric(metric):
    expected = measure_prediction(TRUTH, THOUGHT).interval(metric)
    report = REPORT | {"metrics": {metric: expected.model_dump()}}
    frame = people(800, 5)
    assert ("performance", metric) not in alarms(judged(frame, report=report, metric=metric))
    flipped = frame.with_columns(
        y=pl.when(pl.col("y") == "Yes").then(pl.lit("No")).otherwise(pl.lit("Yes"))
    )
    assert ("performance", metric) in alarms(judged(flipped, report=report, metric=metric))


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "brier", "log_loss"])
def test_a_model_that_is_no_worse_is_called_worse_by_luck_only(metric):
    "A p-value below 0.05 in 5 of 100 windows, of 300 labelled rows, against a test split of 1,000."
    low = 0
    for seed in range(120):
        test, now = people(1000, 1000 + seed), people(300, 5000 + seed)
        truth = [(f["y"] == "Yes").to_numpy().astype(int) for f in (test, now)]
        expected = measure_prediction(truth[0], test["prediction"].to_numpy()).interval(metric)
        (question,) = labelled_performance.performance(
            window(now),
            OBJECTIVE.model_copy(update={"metric": metric}),
            {"metrics": {metric: expected.model_dump()}},
        )
        low += question["p_value"] < 0.05
    assert low <= 15  # 6 expected, 15 by chance in 1 of 1,000


def test_unequal_treatment_alarms_against_the_report_or_what_is_accepted():
    frame = people(1000, 6)
    unequal = frame.with_columns(
        prediction=pl.when(pl.col("sex") == "f")
        .then(pl.col("prediction") ** 0.2)
        .otherwise("prediction")
    )
    assert ("fairness", "sex") in alarms(judged(unequal))
    accepted = {f"{m}_gap": 1.0 for m in ("selection_rate", "tpr", "fpr")}
    assert ("fairness", "sex") not in alarms(judged(unequal, accept=accepted))
    assert ("fairness", "sex") not in alarms(judged(frame, accept={"selection_rate_gap": 0.05}))
    assert "fairness" not in judged(frame, protected=()).table["kind"]


@given(n=st.integers(1, 60), m=st.integers(1, 60), data=st.data())
def test_exceedances_are_a_distribution(n, m, data):
    from math import comb

    k = data.draw(st.integers(0, n))
    assert novelty.exceeding(k, n, m) == pytest.approx(comb(n, k) / comb(n + m, k))


@hypothesis_settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                name: st.none() | values
                for name, values in {
                    "a": st.integers(-(2**60), 2**60),
                    "b": st.floats(-1e9, 1e9),
                    "c": st.text(),
                    "d": st.booleans(),
                    "e": st.dates(datetime(1900, 1, 1).date()),
                    "f": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),
                }.items()
            }
        ),
        min_size=1,
    )
)
def test_inputs_come_back_as_they_were(rows):
    schema = pl.Schema(
        {
            "a": pl.Int64,
            "b": pl.Float64,
            "c": pl.String,
            "d": pl.Boolean,
            "e": pl.Date,
            "f": pl.Datetime("us", "UTC"),
        }
    )
    frame = pl.DataFrame(rows, schema=schema)
    log = frame.select(
        inputs=pl.struct(pl.all()).struct.json_encode(),
        probability=pl.lit(0.5),
        prediction=pl.lit("Yes"),
    )
    assert logged_window(log, schema, TASK).inputs.equals(frame)


# -- windows ---------------------------------------------------------------------------------------


def test_no_traffic_and_too_little_get_no_verdict_and_wait(space):
    nothing = run(space, 0)
    assert (nothing.rows, nothing.quiet, nothing.report) == (0, None, None)
    assert "No verdict" in nothing._repr_html_()
    serve(space, people(60, 1), hour=0)
    assert run(space, 1).quiet is None and kinds(space) == []
    serve(space, people(60, 2), hour=1)
    assert run(space, 2).rows == 120


def test_every_prediction_is_in_one_window_whenever_its_row_came(space):
    expected, rng, counted = 0, np.random.default_rng(0), []
    for hour in range(4):
        for _ in range(3):  # replicas' rows reach the table in any order, up to an hour late
            serve(space, people(60, int(rng.integers(1000))), hour=hour - rng.random() * 0.9)
            expected += 60
        counted.append(run(space, hour + 0.5).rows)
    assert sum(counted) == expected and min(counted) >= 100


def test_a_vacuumed_version_only_loses_what_was_late(space):
    serve(space, people(150, 1), hour=0)
    run(space, 1)
    serve(space, people(150, 2), hour=2)
    serve(space, people(5, 3), hour=-0.1)
    table = space.settings.table("_predictions", "m")
    DeltaTable(table).optimize.compact()
    DeltaTable(table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert run(space, 3).rows == 150


def test_staging_and_shadows_do_not_count_and_each_version_that_answers_is_judged(space):
    for stage in ("staging", "shadow"):
        serve(space, people(500, 1, shift=50), hour=0, stage=stage)
    serve(space, people(300, 2), hour=1, version="2")
    serve(space, people(120, 3), hour=1, version="1")
    found = run(space, 3)
    assert {v: j.rows for v, j in found.judged.items()} == {"2": 300, "1": 120}
    assert (found.version, found.rows, found.versions) == (
        "2",
        420,
        {"2": 300, "1": 120},
    ) and found.quiet
    assert space.asked == ["m/2", "m/1"]
    assert {j.verdict.drift.significance for j in found.judged.values()} == {0.005}  # together 0.01


def test_a_shifted_canary_beside_a_quiet_champion_is_an_alarm(space):
    serve(space, people(800, 1), hour=0, version="1")
    serve(space, people(150, 2, shift=50), hour=0, version="2")
    result = run(space, 1)
    assert not result.quiet and result.rows == 950
    assert {a["version"] for a in result.alarms} == {"2"}
    assert ("drift", "age") in {(a["kind"], a["column"]) for a in result.alarms}
    assert {a.version for a in open_alerts("m", settings=space.settings)} == {"2"}
    event = events.newest(space.settings.events, "monitored", "m")["details"]
    assert (event["judged"]["1"]["quiet"], event["judged"]["2"]["quiet"]) == (True, False)
    assert "m/2: " in result._repr_html_() and "m/1: quiet" in result._repr_html_()


def test_a_version_with_few_rows_keeps_them_for_its_own_window(space):
    serve(space, people(300, 1), hour=0, version="1")
    serve(space, people(60, 2, shift=50), hour=0, version="2")
    first = run(space, 1)
    assert (first.rows, first.waiting, first.quiet) == (300, {"2": 60}, True)
    assert run(space, 2).rows == 0
    serve(space, people(300, 3), hour=2, version="1")
    assert run(space, 3).waiting == {"2": 60}
    serve(space, people(60, 4, shift=50), hour=4, version="2")
    last = run(space, 5)
    assert (last.rows, last.version, last.quiet) == (120, "2", False)
    assert run(space, 6).versions == {}


def test_an_alert_is_closed_by_its_own_version_or_when_that_serves_no_more(space):
    deploy = lambda *versions: events.record(
        space.settings.events,
        "deployed",
        "m",
        by="ann",
        versions=dict.fromkeys(versions, 100 / len(versions)),
    )
    deploy("1", "2")
    serve(space, people(300, 1, shift=9), hour=0, version="1")
    run(space, 1)
    before = open_alerts("m", settings=space.settings)
    assert before and {a.version for a in before} == {"1"}
    serve(space, people(300, 2), hour=2, version="2")
    assert run(space, 3).quiet and open_alerts("m", settings=space.settings) == before
    deploy("2")
    serve(space, people(300, 3), hour=4, version="2")
    assert run(space, 5).quiet and open_alerts("m", settings=space.settings) == []


def test_quiet_runs_over_three_versions_stay_quiet(space):
    "Every version's window asks as many questions; together they alarm as rarely as one."
    false = 0
    for seed in range(25):
        for version in "123":
            serve(space, people(150, 3 * seed + int(version)), hour=seed, version=version)
        false += bool(run(space, seed + 0.5).alarms)
    assert false <= 2  # of 25 at 1 %: more than 2 have a chance of 0.002


def test_rows_that_come_hours_late_are_judged_once(space):
    serve(space, people(200, 1), hour=10)
    assert run(space, 11).rows == 200
    serve(space, people(150, 2), hour=1)  # recovered from a replica that died nine hours before
    serve(space, people(200, 3), hour=12)
    assert run(space, 13).rows == 350
    assert run(space, 14).rows == 0
    reports = list((Path(space.settings.storage) / "monitoring" / "m").iterdir())
    assert len(reports) == 2


def test_late_rows_alone_make_a_window_of_their_own(space):
    serve(space, people(200, 1), hour=10)
    first = run(space, 11)
    serve(space, people(150, 2), hour=1)
    serve(space, people(150, 3), hour=1)
    second = run(space, 12)
    assert (second.rows, run(space, 13).rows) == (300, 0)
    assert first.report != second.report and first.report.exists()
    assert lake.scan(space.settings.table("_profiles")).collect().height == 2


def test_upkeep_of_the_table_repeats_and_loses_no_row(space):
    serve(space, people(200, 1), hour=10)
    serve(space, people(150, 2), hour=10)
    assert run(space, 11).rows == 350
    serve(space, people(120, 3), hour=1)
    DeltaTable(space.settings.table("_predictions", "m")).optimize.compact()
    assert run(space, 12).rows == 120
    assert run(space, 13).rows == 0


def test_a_label_that_is_corrected_after_it_was_judged_is_not_judged_again(space):
    rows = serve(space, people(400, 1), hour=0)
    tell(space, rows, hour=0)
    assert run(space, 1).judged["1"].verdict.labelled == 400
    tell(space, rows[:150].with_columns(y=pl.lit("No")), hour=2)  # corrections
    more = serve(space, people(200, 2), hour=2)
    tell(space, more, hour=2)
    judged = run(space, 3).judged["1"]
    assert (judged.verdict.labelled, judged.corrections) == (200, 150)
    event = events.newest(space.settings.events, "monitored", "m")["details"]
    assert (event["labelled"], event["judged"]["1"]["corrections"]) == (200, 150)


def test_a_label_that_is_corrected_before_it_is_judged_counts_once(space):
    rows = serve(space, people(200, 1), hour=0)
    tell(space, rows.with_columns(y=pl.lit("No")), hour=0)
    tell(space, rows, hour=1)
    judged = run(space, 2).judged["1"]
    assert (judged.verdict.labelled, judged.corrections) == (200, 0)
    assert judged.verdict.table.filter(kind="performance")["value"].item() == pytest.approx(
        auc((rows["y"] == "Yes").to_numpy().astype(int), rows["probability"].to_numpy()).value
    )


def test_labels_of_a_version_are_not_used_up_by_another(space):
    ones, twos = (serve(space, people(300, n), hour=0, version=str(n)) for n in (1, 2))
    run(space, 1)
    tell(space, ones, hour=2)
    tell(space, twos, hour=2)
    serve(space, people(150, 3), hour=2, version="1")
    assert run(space, 3).judged["1"].verdict.labelled == 300
    serve(space, people(150, 4), hour=4, version="2")
    assert run(space, 5).judged["2"].verdict.labelled == 300


def tell_ahead(space, frame: pl.DataFrame, hour: float) -> None:
    "Labels of predictions that the next `serve` will log."
    ids = pl.format(f"{space.batch + 1}-{{}}", pl.int_range(frame.height))
    tell(space, frame.with_columns(prediction_id=ids), hour)


def test_a_label_that_comes_before_its_prediction_is_used(space):
    first, late = serve(space, people(200, 1), hour=0), people(150, 2)
    tell(space, first, hour=0.1)
    tell_ahead(space, late, hour=0.2)  # the prediction is in the log of a replica that died
    assert run(space, 1).version_verdict.labelled == 200
    serve(space, late, hour=0.1)
    second = run(space, 2)
    assert (second.rows, second.version_verdict.labelled, second.judged["1"].corrections) == (
        150,
        150,
        0,
    )
    serve(space, people(150, 3), hour=2)
    assert run(space, 3).version_verdict.labelled == 0


def test_few_labels_that_came_before_their_predictions_wait_for_more(space):
    first, late = serve(space, people(200, 1), hour=0), people(60, 2)
    tell(space, first, hour=0.1)
    tell_ahead(space, late, hour=0.2)
    assert run(space, 1).version_verdict.labelled == 200
    serve(space, late, hour=0.1)
    more = serve(space, people(100, 3), hour=1.5)
    assert run(space, 2).version_verdict.labelled == 0  # 60 are too few
    serve(space, people(100, 4), hour=2.5)
    tell(space, more[:60], hour=2.6)
    assert run(space, 3).version_verdict.labelled == 120
    serve(space, people(100, 5), hour=3.5)
    assert run(space, 4).version_verdict.labelled == 0


def test_a_correction_after_the_run_is_left_for_the_next(space):
    first, more = (serve(space, people(n, n), hour=0) for n in (200, 150))
    tell(space, first, hour=0.1)
    assert run(space, 0.5).version_verdict.labelled == 200
    tell(space, more, hour=1.1)
    tell(space, more.with_columns(y=pl.lit("No")), hour=3)
    serve(space, people(150, 3), hour=1.2)
    second = run(space, 2)
    assert (second.version_verdict.labelled, second.judged["1"].corrections) == (150, 0)
    serve(space, people(150, 4), hour=3)
    third = run(space, 4)
    assert (third.version_verdict.labelled, third.judged["1"].corrections) == (0, 0)


def test_the_state_of_earlier_releases_is_read(space):
    rows = serve(space, people(300, 1), hour=0)
    tell(space, rows, hour=0)
    mark = {"version": 0, "end": rows["at"].max().isoformat()}
    old = {"version": 0, "end": (NOON).isoformat()}
    events.record(
        space.settings.events,
        "monitored",
        "m",
        by="monitoring",
        rows=300,
        version="1",
        versions={"1": 300},
        seen={"_predictions": mark, "_feedback": old},
        quiet=True,
        labelled=300,
    )
    assert run(space, 1).rows == 0
    serve(space, people(150, 2), hour=-2)
    result = run(space, 2)
    assert result.rows == 150 and result.judged["1"].verdict.labelled == 0


def test_labels_of_earlier_windows_count_when_they_come_and_the_last_one_counts(space):
    rows = serve(space, people(400, 1), hour=0)
    assert run(space, 1).version_verdict.labelled == 0
    tell(space, rows[:50], hour=2)
    serve(space, people(120, 2), hour=2)
    assert run(space, 3).version_verdict.labelled == 0  # too few: they wait
    tell(space, rows[50:].with_columns(y=pl.lit("No")), hour=4)
    tell(space, rows[50:], hour=5)
    serve(space, people(120, 3), hour=5)
    found = run(space, 6)
    assert found.version_verdict.labelled == 400
    assert found.table.filter(pl.col("kind") == "performance")["value"].item() == pytest.approx(
        auc((rows["y"] == "Yes").to_numpy().astype(int), rows["probability"].to_numpy()).value
    )
    serve(space, people(120, 4), hour=7)
    assert run(space, 8).version_verdict.labelled == 0  # used once


def test_labels_of_no_class_and_of_unknown_predictions_are_left_out(space):
    rows = serve(space, people(300, 1), hour=0)
    tell(space, rows[:100].with_columns(y=pl.lit("Perhaps")), hour=0)
    tell(space, rows[100:250], hour=0)
    tell(space, rows[250:].with_columns(prediction_id=pl.format("x{}", "prediction_id")), hour=0)
    assert run(space, 1).version_verdict.labelled == 150


def test_what_replicas_acknowledged_is_waited_for(space):
    log = PredictionLog(space.settings, "m").start()
    try:
        frame = people(150, 1)
        every = {
            "model_version": "1",
            "signature": "s",
            "prediction": "Yes",
            "latency_ms": 1.0,
            "stage": "production",
        }
        log.append(
            {k: [v] * 150 for k, v in every.items()}
            | {
                "prediction_id": [f"w{i}" for i in range(150)],
                "at": [1_770_000_000_000_000 + i for i in range(150)],
                "inputs": frame.select(pl.struct(INPUTS).struct.json_encode())
                .to_series()
                .to_list(),
                "probability": frame["prediction"].to_list(),
            }
        )
        assert monitor("m", settings=space.settings).rows == 150
    finally:
        log.close()


# -- what is remembered ----------------------------------------------------------------------------


def test_profile_report_and_event_of_a_window(space):
    serve(space, people(300, 1, shift=9), hour=0)
    found = run(space, 1)
    kept = lake.scan(space.settings.table("_profiles")).collect().row(0, named=True)
    assert kept["subject"] == "m" and kept["rows"] == 300 and kept["at"] == found.window[1]
    assert Profile.from_bytes(kept["profile"]).columns == sorted([*INPUTS, "prediction"])
    event = events.newest(space.settings.events, "monitored", "m")["details"]
    assert Path(event["report"]) == found.report and found.report.parent.parent.name == "m"
    facts = json.loads((found.report.parent / "report.json").read_text())
    assert facts["rows"] == event["rows"] == 300 and len(facts["questions"]) == found.table.height
    assert "drift of age" in found.report.read_text().replace("\n", " ")


def test_alerts_open_once_propose_once_and_close(space):
    serve(space, people(300, 1, shift=9), hour=0)
    first = run(space, 1)
    opened = open_alerts("m", settings=space.settings)
    assert {(a.kind, a.column) for a in opened} == {(a["kind"], a["column"]) for a in first.alarms}
    assert first.open_alerts == tuple(opened)
    assert all(isinstance(a, Alert) and a.message in a._repr_html_() for a in opened)
    rows = json.loads(json.dumps([a.as_dict() for a in opened]))
    keys = {"id", "model", "kind", "column", "message", "since", "version", "report"}
    assert all(row.keys() == keys for row in rows)
    proposal = events.newest(space.settings.events, "retraining_proposed", "m")
    assert set(proposal["details"]["because"]) == {a.id for a in opened if a.kind == "drift"}
    serve(space, people(300, 2, shift=9), hour=2)
    assert not run(space, 3).quiet and open_alerts("m", settings=space.settings) == opened
    assert events.newest(space.settings.events, "retraining_proposed", "m")["id"] == proposal["id"]
    serve(space, people(50, 3), hour=4)
    run(space, 5)
    assert open_alerts("m", settings=space.settings) == opened  # too few rows to be quiet
    serve(space, people(300, 4), hour=6)
    assert run(space, 7).quiet and open_alerts("m", settings=space.settings) == []
    serve(space, people(300, 5, shift=9), hour=8)
    run(space, 9)
    assert len(open_alerts("m", settings=space.settings)) == len(opened)
    assert kinds(space).count("retraining_proposed") == 2


def test_broken_data_proposes_no_retraining(space):
    "Neither by itself, nor when the same version drifts too; once mended, the drift proposes."
    half = pl.int_range(pl.len()) % 2 == 0
    nulls = pl.when(half).then(None).otherwise("lines").alias("lines")
    serve(space, people(300, 1, shift=9).with_columns(nulls), hour=0)
    columns = {(a["kind"], a["column"]) for a in run(space, 1).alarms}
    assert {("nulls", "lines"), ("drift", "age")} <= columns
    assert "retraining_proposed" not in kinds(space)
    serve(space, people(300, 2, shift=9), hour=2)
    run(space, 3)
    proposal = events.newest(space.settings.events, "retraining_proposed", "m")["details"]
    opened = {a.id: a.kind for a in open_alerts("m", settings=space.settings)}
    assert {opened[id_] for id_ in proposal["because"]} == {"drift"}


def test_a_performance_alert_stays_open_without_labels(space):
    rows = serve(space, people(400, 1), hour=0)
    tell(
        space,
        rows.with_columns(
            y=pl.when(pl.col("y") == "Yes").then(pl.lit("No")).otherwise(pl.lit("Yes"))
        ),
        hour=0,
    )
    assert ("performance", "roc_auc") in {(a["kind"], a["column"]) for a in run(space, 1).alarms}
    serve(space, people(400, 2), hour=2)
    assert run(space, 3).quiet
    assert "performance" in {a.kind for a in open_alerts("m", settings=space.settings)}


@pytest.mark.parametrize("dies_at", range(8))
def test_a_pass_that_dies_anywhere_is_made_good_by_the_next(space, monkeypatch, dies_at):
    serve(space, people(300, 1, shift=9), hour=0)
    record, append, count = events.record, lake.append, iter(range(100))

    def mortal(step):
        def call(*args, **options):
            if next(count) == dies_at:
                raise RuntimeError("killed")
            return step(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(monitoring.events, "record", mortal(record))
        patch.setattr(lake, "append", mortal(append))
        try:
            run(space, 1)
        except RuntimeError:
            pass
    run(space, 2)
    found = open_alerts("m", settings=space.settings)
    log = kinds(space)
    assert len(found) == len({(a.kind, a.column) for a in found}) == log.count("alert_opened") > 0
    assert (
        log.count("monitored"),
        log.count("retraining_proposed"),
        log.count("alert_closed"),
    ) == (1, 1, 0)
    assert events.newest(space.settings.events, "monitored", "m")["details"]["rows"] == 300
    because = events.newest(space.settings.events, "retraining_proposed", "m")["details"]["because"]
    assert set(because) <= {a.id for a in found if a.kind == "drift"}
    assert lake.scan(space.settings.table("_profiles")).collect().height == 1


def test_of_two_passes_at_once_one_gives_way(space):
    serve(space, people(300, 1, shift=9), hour=0)
    barrier, ended = threading.Barrier(2), []

    def one():
        barrier.wait()
        try:
            ended.append(run(space, 1).rows)
        except EventConflict:
            ended.append("conflict")

    threads = [threading.Thread(target=one) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    run(space, 2)
    log = kinds(space)
    assert log.count("monitored") == 1
    assert log.count("alert_opened") == len(open_alerts("m", settings=space.settings))


# -- telling ---------------------------------------------------------------------------------------


@pytest.fixture
def receiver():
    "An HTTP server that remembers what it was told, and fails as often as it should."

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            told.failures -= 1
            self.send_response(500 if told.failures >= 0 else 204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    told = SimpleNamespace(bodies=[], failures=0, url=f"http://127.0.0.1:{server.server_port}/hook")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


def hooked(space, url: str):
    settings = space.settings
    space.settings = settings.model_copy(
        update={"alerts": settings.alerts.model_copy(update={"webhook": Webhook(url)})}
    )
    return space


def test_alerts_are_posted_once(space, receiver):
    hooked(space, receiver.url)
    receiver.failures = 1
    for hour in (0, 2):
        serve(space, people(300, hour, shift=9), hour=hour)
        run(space, hour + 1)
    assert (
        len(receiver.bodies) == 2 and receiver.bodies[0] == receiver.bodies[1]
    )  # once refused, once accepted
    told = {(a["kind"], a["column"]) for a in receiver.bodies[1]["alerts"]}
    assert ("drift", "age") in told and receiver.bodies[1]["model"] == "m"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/closed", "nonsense", "http://[bad"])
def test_a_webhook_that_fails_is_recorded_and_not_fatal(space, url):
    hooked(space, url)
    serve(space, people(300, 1, shift=9), hour=0)
    assert run(space, 1).alarms
    assert events.newest(space.settings.events, "notified", "m")["details"]["error"]
    assert kinds(space).count("monitored") == 1


def test_quiet_windows_tell_nobody(space, receiver):
    hooked(space, receiver.url)
    serve(space, people(300, 1), hour=0)
    assert run(space, 1).quiet and receiver.bodies == []


def test_the_page_escapes_what_customers_sent(space):
    evil = people(300, 1).with_columns(plan=pl.lit("<script>alert(1)</script>"))
    serve(space, evil, hour=0)
    found = run(space, 1)
    assert not found.quiet and "<script>alert" not in found.report.read_text() + found._repr_html_()
    assert "&lt;script&gt;" in found.report.read_text()


def test_pages_and_reports_work_in_a_browser_under_their_policy(space, chromium, listening):
    from playwright.sync_api import sync_playwright

    from mlops_nb.front import pages

    serve(space, people(300, 1, shift=9), hour=0)
    assert run(space, 1).alarms
    with listening(pages.control_app(space.settings)) as port, sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page, problems = browser.new_page(), []
        page.on(
            "console",
            lambda m: problems.append(m.text) if "Content Security Policy" in m.text else None,
        )
        for path in ("/", "/monitor/", "/monitor/m", "/api/docs"):
            assert page.goto(f"http://localhost:{port}{path}").status == 200
            assert page.evaluate("[...document.styleSheets].some(s => s.cssRules.length)"), (
                path
            )  # its style is let through
        page.goto(f"http://localhost:{port}/monitor/m")
        pictures = page.evaluate("[...document.images].map(i => i.naturalWidth)")
        assert all(pictures) and (pictures or page.locator("svg").count())
        page.goto("about:blank")
        page.set_content(f"<iframe src='http://localhost:{port}/'></iframe>")
        page.wait_for_timeout(500)
        assert page.frames[-1].url.startswith(
            "chrome-error"
        )  # no other page may show it in a frame
        browser.close()
    assert not [text for text in problems if "frame-ancestors" not in text], problems
