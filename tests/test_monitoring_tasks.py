"""Monitoring of the three tasks: what is asked of probabilities, of labels and of numbers."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from mlops_nb.core import events, lake
from mlops_nb.core.settings import create
from mlops_nb.data.profiles.profiling import profile
from mlops_nb.science.objective import Objective
from mlops_nb.science.predictions import LOG_COLUMNS, Predictions, named_apart
from mlops_nb.science.signature import Signature
from mlops_nb.science.task import Binary, Multiclass, Regression
from mlops_nb.service import monitoring
from mlops_nb.service.monitoring import monitor
from mlops_nb.service.monitoring.alerts import open_alerts
from mlops_nb.service.monitoring.checks import Verdict, judge
from mlops_nb.service.monitoring.fairness import check_fairness, group_values
from mlops_nb.service.monitoring.performance import (
    interval_coverage,
    mean_error,
    measured,
    performance,
    too_few_labels,
)
from mlops_nb.service.monitoring.window import Window, logged_window, unusable
from mlops_nb.service.serving.log import TABLES

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TASKS = {
    "binary": Binary(labels=("No", "Yes")),
    "multiclass": Multiclass(labels=("A", "B", "C")),
    "regression": Regression(half_width=1.645),
}
METRICS = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}
EACH = pytest.mark.parametrize("kind", TASKS)
SCHEMA = TABLES["_predictions"] | LOG_COLUMNS


def window(kind: str, n: int, seed: int, *, shift: float = 0, noise: float = 1.0) -> Window:
    "Rows of a model that is as good as it says, unless there is more noise than it knows."
    rng = np.random.default_rng(seed)
    x, sex = rng.normal(size=n) + shift, rng.choice(["f", "m"], n)
    frame = pl.DataFrame({"x": x, "plan": rng.choice(["a", "b"], n), "sex": sex})
    task = TASKS[kind]
    if kind == "regression":
        truth = 10 * x + noise * rng.normal(size=n)
        return Window(task, frame, task.with_intervals(10 * x), truth)
    slopes = np.array([0.0, 1.5]) if kind == "binary" else np.array([-1.5, 0.0, 1.5])
    raw = np.exp(np.outer(x, slopes))
    scores = raw / raw.sum(axis=1, keepdims=True)
    truth = (scores.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    if noise > 1:
        truth = rng.permutation(truth)
    return Window(task, frame, task.decided(scores), truth)


def test_report(kind: str, tested: Window) -> dict:
    "What the test report of a model holds of it."
    values = {METRICS[kind]: measured(tested, METRICS[kind]).model_dump()}
    fairness = group_values(tested, tested, ("sex",)).to_dicts()
    return {"rows": len(tested), "metrics": values, "fairness": fairness}


test_report.__test__ = False
OBJECTIVES = {
    kind: Objective(
        name="m",
        question="What?",
        target="y",
        task=kind,
        metric=METRICS[kind],
        protected=["sex"],
        key="id",
        **({"positive": "Yes"} if kind == "binary" else {}),
    )
    for kind in TASKS
}
TESTED = {kind: window(kind, 2000, 99) for kind in TASKS}
REPORTS = {kind: test_report(kind, tested) for kind, tested in TESTED.items()}
REFERENCES = {
    kind: profile(window(kind, 3000, 98).inputs).merge(profile(TESTED[kind].watched))
    for kind in TASKS
}


def judged(rows: Window, *, labels: bool = True, **changes) -> Verdict:
    kind = rows.task.kind
    labelled = rows if labels else rows.take([])
    objective = OBJECTIVES[kind].model_copy(update=changes)
    return judge(rows, labelled, REFERENCES[kind], objective, REPORTS[kind])


def alarms(verdict: Verdict) -> set[tuple[str, str]]:
    return {(a["kind"], a["column"]) for a in verdict.alarms}


# -- false alarms and power ------------------------------------------------------------------------


@EACH
def test_quiet_windows_stay_quiet(kind):
    "Each against a training and a test split of its own."
    false = 0
    for seed in range(100):
        tested, rows = window(kind, 2000, seed + 20_000), window(kind, 400, seed + 40_000)
        reference = profile(window(kind, 3000, seed + 30_000).inputs).merge(profile(tested.watched))
        verdict = judge(rows, rows, reference, OBJECTIVES[kind], test_report(kind, tested))
        false += bool(verdict.alarms)
    assert false <= 5  # 1 of 100 promised; more than 5 by chance in 1 of 2,000


@pytest.mark.parametrize("metric", ["rmse", "mae"])
@pytest.mark.parametrize("errors", ["normal", "exponential", "multiplicative"])
def test_numbers_as_good_as_tested_are_called_worse_by_luck_only(metric, errors):
    "Also where the test split is small and a few large errors make the metric."
    rng = np.random.default_rng(3)

    def rows(n: int) -> Window:
        predicted = np.exp(rng.normal(5, 1, n))
        error = {
            "normal": rng.normal(size=n),
            "exponential": rng.exponential(size=n) - 1,
            "multiplicative": predicted * (np.exp(rng.normal(0, 0.3, n) - 0.045) - 1),
        }[errors]
        task = Regression()
        inputs = pl.DataFrame({"x": predicted})
        return Window(task, inputs, task.with_intervals(predicted), predicted + error)

    objective = OBJECTIVES["regression"].model_copy(update={"metric": metric})
    low = {metric: 0, "bias": 0}
    for _ in range(400):
        tested = rows(300)
        report = {"rows": 300, "metrics": {metric: measured(tested, metric).model_dump()}}
        for question in performance(rows(600), objective, report):
            low[question["column"]] += question["p_value"] < 0.01
    assert max(low.values()) <= 12, low  # 4 expected; more than 12 by chance in 1 of 4,000


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_labels_as_good_as_tested_are_called_worse_by_luck_only(metric):
    objective, low = OBJECTIVES["multiclass"].model_copy(update={"metric": metric}), 0
    for seed in range(300):
        tested, now = (window("multiclass", n, seed + n * 1000) for n in (600, 200))
        report = {"rows": 600, "metrics": {metric: measured(tested, metric).model_dump()}}
        (question,) = performance(now, objective, report)
        low += question["p_value"] < 0.05
    assert low <= 27  # 15 expected


def test_coverage_is_at_fault_by_luck_only_and_not_for_what_the_test_had():
    low = sum(
        interval_coverage(window("regression", 200, s), {})[0]["p_value"] < 0.05 for s in range(400)
    )
    assert low <= 34  # 20 expected
    narrow = window("regression", 5000, 1, noise=1.1)  # 86 % of the numbers are inside
    tested = {"rows": 1000, "metrics": {"coverage": {"value": 0.86, "low": 0.84, "high": 0.88}}}
    assert interval_coverage(narrow, {})[0]["p_value"] < 1e-9
    assert interval_coverage(narrow, tested)[0]["p_value"] > 0.01
    assert interval_coverage(window("regression", 500, 2, noise=0.5), {})[0]["p_value"] > 0.5


@EACH
def test_group_differences_that_the_test_had_are_called_wider_by_luck_only(kind):
    low = 0
    for seed in range(200):
        tested, now = window(kind, 1000, seed + 10_000), window(kind, 300, seed)
        report = {"fairness": group_values(tested, tested, ("sex",)).to_dicts()}
        (question,) = check_fairness(now, now, OBJECTIVES[kind], report)
        low += question["p_value"] < 0.05
    assert low <= 20  # at most 10 promised


@EACH
def test_a_worse_model_is_named(kind):
    verdict = judged(window(kind, 600, 1, noise=2))
    expected = {("performance", METRICS[kind])}
    if kind == "regression":
        expected |= {("performance", "coverage")}
    assert alarms(verdict) >= expected
    assert verdict.unjudged is None


def test_numbers_that_lie_to_one_side_are_named_before_the_error_is():
    rows = window("regression", 600, 1)
    low = Window(rows.task, rows.inputs, rows.predictions, rows.truth + 0.25)
    assert alarms(judged(low)) == {("performance", "bias")}
    as_tested = {"metrics": {"bias": {"value": -0.25, "low": -0.3, "high": -0.2}}}
    assert mean_error(low, as_tested)["p_value"] > 0.01


@EACH
def test_other_inputs_change_the_predictions_too(kind):
    found = alarms(judged(window(kind, 600, 1, shift=1.0), labels=False))
    assert {("drift", "x"), ("drift", "prediction")} <= found


def test_a_model_that_becomes_less_sure_of_the_same_labels_is_named():
    rows = window("multiclass", 800, 1)
    scores = (rows.predictions.scores + 1) / 4
    unsure = Window(rows.task, rows.inputs, rows.task.decided(scores))
    assert alarms(judged(unsure, labels=False)) == {("drift", "prediction_confidence")}


@EACH
def test_a_group_that_is_treated_otherwise_is_named(kind):
    rows = window(kind, 900, 1)
    women = (rows.inputs["sex"] == "f").to_numpy()
    if kind == "regression":
        truth = np.where(women, rows.truth - 1, rows.truth + 1)
        changed = Window(rows.task, rows.inputs, rows.predictions, truth)
    else:
        scores = rows.predictions.scores.copy()
        scores[women] = np.eye(scores.shape[1])[-1]
        changed = Window(rows.task, rows.inputs, rows.task.decided(scores), rows.truth)
    (question,) = check_fairness(changed, changed, OBJECTIVES[kind], REPORTS[kind])
    assert question["p_value"] < 1e-6 and question["column"] == "sex"


def test_a_gap_that_is_accepted_is_no_alarm():
    rows = window("regression", 900, 1)
    women = (rows.inputs["sex"] == "f").to_numpy()
    changed = Window(
        rows.task, rows.inputs, rows.predictions, rows.truth + np.where(women, 1.0, -1.0)
    )
    accepted = {"absolute_error_gap": 3.0, "mean_error_gap": 3.0}
    objective = OBJECTIVES["regression"].model_copy(update={"accept": accepted})
    (question,) = check_fairness(changed, changed, objective, {})
    assert question["p_value"] == 1.0


# -- unusable predictions, few labels --------------------------------------------------------------


@EACH
def test_a_prediction_that_is_none_is_a_fault_and_counts_for_nothing_else(kind):
    rows = window(kind, 400, 3)
    for wrong in (np.nan, np.inf) if kind == "regression" else (np.nan, 1.5, -0.1):
        values = rows.predictions
        if kind == "regression":
            numbers = values.numbers.copy()
            numbers[0] = wrong
            broken = Predictions(numbers=numbers, low=values.low, high=values.high)
        else:
            scores = values.scores.copy()
            scores[0, -1] = wrong
            broken = Predictions(labels=values.labels, scores=scores)
        changed = Window(rows.task, rows.inputs, broken, rows.truth)
        assert unusable(changed)["value"] == 1
        assert alarms(judged(changed)) == {("errors", "prediction")}


def test_the_least_number_of_labels_is_the_task_s():
    numbers, labels = window("regression", 40, 1), window("multiclass", 400, 1)
    assert too_few_labels(numbers, "rmse") is None
    assert "30 labels, got 29" in too_few_labels(numbers.take(np.arange(29)), "rmse")
    common = labels.take(labels.truth != 1)
    assert too_few_labels(common, "log_loss") is None
    assert too_few_labels(common, "f1") == "expected 10 of each label, got 0 of B"
    only = labels.take(labels.truth == 0)
    assert too_few_labels(only, "accuracy") == "expected 10 labels other than A, got 0"
    binary = window("binary", 400, 1)
    assert too_few_labels(binary.take(binary.truth == 1), "roc_auc")
    assert judged(only).unjudged == "expected 10 labels other than A, got 0"
    assert judged(numbers).unjudged == "expected 100 labels, got 40"
    assert judged(window("regression", 200, 1), metric="mae").unjudged == (
        "the test report has no mae"
    )


# -- names that collide ----------------------------------------------------------------------------


@pytest.mark.parametrize("values", [pl.Series(["up", "down"] * 200), pl.Series(range(400))])
def test_an_input_called_prediction_and_the_predictions_are_both_watched(values):
    rows = window("binary", 400, 1)
    frame = rows.inputs.with_columns(values.alias("prediction"), label=pl.lit(1))
    named = Window(rows.task, frame, rows.predictions, rows.truth)
    watched = named_apart(rows.task.watched(rows.predictions), frame.columns)
    reference = profile(frame).merge(profile(watched))
    quiet = judge(named, named, reference, OBJECTIVES["binary"], REPORTS["binary"])
    assert quiet.alarms == [] and quiet.meanings == {"prediction_": "probability of Yes"}
    drifted = Window(rows.task, frame, rows.task.from_positive(np.full(400, 0.9)))
    verdict = judge(drifted, drifted.take([]), reference, OBJECTIVES["binary"], {})
    assert alarms(verdict) == {("drift", "prediction_")}
    other = frame.with_columns(pl.lit(values[0]).alias("prediction"))
    replaced = Window(rows.task, other, rows.predictions)
    verdict = judge(replaced, replaced.take([]), reference, OBJECTIVES["binary"], {})
    assert alarms(verdict) == {("drift", "prediction")}


def test_a_reference_that_mixed_an_input_with_the_predictions_is_not_compared_with():
    rows = window("binary", 400, 1)
    frame = rows.inputs.with_columns(prediction=pl.Series(range(400)))
    mixture = profile(frame).merge(profile(rows.task.watched(rows.predictions)))
    named = Window(rows.task, frame, rows.predictions, rows.truth)
    verdict = judge(named, named, mixture, OBJECTIVES["binary"], REPORTS["binary"])
    (told,) = verdict.table.filter(pl.col("column") == "prediction").to_dicts()
    assert verdict.alarms == [] and "earlier release" in told["message"]


# -- the log ---------------------------------------------------------------------------------------


def log(rows: Window, columns: list[str]) -> pl.DataFrame:
    "Rows as the log has them, with some of its columns."
    logged = pl.DataFrame(rows.task.log_columns(rows.predictions), schema=LOG_COLUMNS)
    inputs = rows.inputs.select(inputs=pl.struct(pl.all()).struct.json_encode())
    return pl.concat([inputs, logged.select(columns)], how="horizontal")


@EACH
def test_logged_rows_are_the_window_that_was_answered(kind):
    rows = window(kind, 50, 1)
    again = logged_window(log(rows, list(LOG_COLUMNS)), rows.inputs.schema, rows.task)
    assert again.inputs.equals(rows.inputs) and again.watched.equals(rows.watched)
    empty = log(rows, list(LOG_COLUMNS)).clear()
    assert len(logged_window(empty, rows.inputs.schema, rows.task)) == 0


def test_logs_of_earlier_releases_are_read():
    rows = window("binary", 50, 1)
    old = log(rows, ["prediction", "probability"])
    assert logged_window(old, rows.inputs.schema, rows.task).watched.equals(rows.watched)
    for kind in ("multiclass", "regression"):
        other = logged_window(old, rows.inputs.schema, TASKS[kind])
        assert not other.is_usable.any()  # nothing that such a model could have said


# -- through a workspace ---------------------------------------------------------------------------


@pytest.fixture
def space(tmp_path, monkeypatch):
    "A workspace with a version of each task: 1 is binary, 2 multiclass, 3 a regression."
    bundles = {
        f"m/{number}": SimpleNamespace(
            signature=Signature.of(window(kind, 300, 97).inputs),
            profile=REFERENCES[kind],
            objective=OBJECTIVES[kind],
            report=REPORTS[kind],
            labels=TASKS[kind].labels,
            task=TASKS[kind],
        )
        for number, kind in enumerate(TASKS, 1)
    }
    resolve = lambda ref, *, settings: SimpleNamespace(bundle=lambda settings: bundles[ref])
    monkeypatch.setattr(monitoring.registry, "resolve", resolve)
    settings = create(tmp_path, monitor={"min_rows": 100})
    return SimpleNamespace(settings=settings, version=dict(zip(TASKS, "123", strict=True)))


def serve(space, rows: Window, hour: float) -> list[str]:
    "Log predictions, a second apart. Return their ids."
    version = space.version[rows.task.kind]
    ids = [f"{version}-{hour}-{i}" for i in range(len(rows))]
    whole = log(rows, list(LOG_COLUMNS)).with_columns(
        prediction_id=pl.Series(ids),
        model_version=pl.lit(version),
        at=pl.lit(NOON + timedelta(hours=hour)) + pl.duration(seconds=pl.int_range(len(rows))),
        signature=pl.lit("s"),
        stage=pl.lit("production"),
        latency_ms=pl.lit(2.0),
    )
    table = space.settings.table("_predictions", "m")
    lake.append(table, whole.select(pl.col(c).cast(t) for c, t in SCHEMA.items()))
    return ids


def report_labels(space, ids: list[str], labels: list[str], hour: float) -> None:
    at = pl.lit(NOON + timedelta(hours=hour)).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"prediction_id": ids, "label": labels}).with_columns(at=at)
    table = space.settings.table("_feedback", "m")
    lake.append(table, rows.select("prediction_id", "at", "label"))


def spelled(rows: Window) -> list[str]:
    "The true labels as clients report them, every second one in another spelling."
    if rows.task.kind == "regression":
        return [repr(v) if i % 2 else f"{v:.17e}" for i, v in enumerate(rows.truth.tolist())]
    return [rows.task.labels[code] for code in rows.truth]


def test_versions_of_three_tasks_in_one_log_are_each_judged_by_their_own(space):
    for kind in TASKS:
        rows = window(kind, 300, 5)
        report_labels(space, serve(space, rows, hour=0), spelled(rows), hour=0.5)
    run = monitor("m", settings=space.settings, now=NOON + timedelta(hours=1))
    assert run.quiet, run.alarms
    assert {v: j.verdict.labelled for v, j in run.judged.items()} == dict.fromkeys("123", 300)
    answers = run.table.filter(pl.col("kind") == "performance")
    pairs = set(answers.select("version", "column").iter_rows())
    assert pairs == {
        ("1", "roc_auc"),
        ("2", "log_loss"),
        ("3", "rmse"),
        ("3", "coverage"),
        ("3", "bias"),
    }
    page = run.report.read_text()
    words = ("probability of Yes", "predicted label", "predicted number", "coverage", "(usually ")
    assert all(text in page for text in words)
    assert run.judged["3"].telemetry["unusable"] == 0


def test_labels_of_another_task_are_ignored_counted_and_shown(space):
    rows = window("regression", 300, 5)
    labels = spelled(rows)
    labels[:20] = ["Yes", "nan", "", "true", "A"] * 4
    report_labels(space, serve(space, rows, hour=0), labels, hour=0.5)
    run = monitor("m", settings=space.settings, now=NOON + timedelta(hours=1))
    judged = run.judged["3"]
    assert (judged.verdict.labelled, judged.ignored) == (280, 20) and run.quiet
    page = " ".join(run.report.read_text().split())
    assert "none of this version&#39;s, and ignored: 20" in page.replace("'", "&#39;")
    event = events.newest(space.settings.events, "monitored", "m")["details"]
    assert event["judged"]["3"]["ignored"] == 20


def test_labels_of_booleans_and_numbers_count_in_every_spelling(space, monkeypatch):
    rows = window("binary", 200, 5)
    task = Binary(labels=("0", "1"))
    version = monitoring.registry.resolve("m/1", settings=space.settings)
    version.bundle(space.settings).task = task
    monkeypatch.setitem(TASKS, "binary", task)
    renamed = Window(task, rows.inputs, task.from_positive(rows.predictions.positive), rows.truth)
    spellings = (("0", "0.0", "00"), ("1", "1.0", "1e0"))
    labels = [spellings[code][i % 3] for i, code in enumerate(rows.truth)]
    report_labels(space, serve(space, renamed, hour=0), labels, hour=0.5)
    run = monitor("m", settings=space.settings, now=NOON + timedelta(hours=1))
    assert (run.judged["1"].verdict.labelled, run.judged["1"].ignored) == (200, 0)


def test_a_worse_regression_opens_alerts_and_proposes_a_retraining(space):
    rows = window("regression", 300, 5, noise=2)
    report_labels(space, serve(space, rows, hour=0), spelled(rows), hour=0.5)
    monitor("m", settings=space.settings, now=NOON + timedelta(hours=1))
    alerts = open_alerts("m", settings=space.settings)
    assert {(a.kind, a.column) for a in alerts} == {
        ("performance", "rmse"),
        ("performance", "coverage"),
    }
    assert events.newest(space.settings.events, "retraining_proposed", "m")
    few = window("regression", 200, 6)
    serve(space, few, hour=2)
    run = monitor("m", settings=space.settings, now=NOON + timedelta(hours=3))
    assert len(run.open_alerts) == 2  # without labels they stay open
    assert "expected 100 labels, got 0" in run.report.read_text()


def test_a_table_of_an_earlier_release_is_monitored(space):
    rows = window("binary", 150, 5)
    old = [c for c in SCHEMA if c not in ("scores", "number", "low", "high")]
    table = space.settings.table("_predictions", "m")
    whole = log(rows, ["prediction", "probability"]).with_columns(
        prediction_id=pl.format("o{}", pl.int_range(150)),
        model_version=pl.lit("1"),
        at=pl.lit(NOON) + pl.duration(seconds=pl.int_range(150)),
        signature=pl.lit("s"),
        stage=pl.lit("production"),
        latency_ms=pl.lit(2.0),
    )
    lake.append(table, whole.select(pl.col(c).cast(SCHEMA[c]) for c in old))
    report_labels(space, whole["prediction_id"].to_list(), spelled(rows), hour=0.5)
    run = monitor("m", settings=space.settings, now=NOON + timedelta(hours=1))
    assert run.quiet and run.judged["1"].verdict.labelled == 150
