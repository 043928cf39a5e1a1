"The gate for three tasks: error rates, undecided checks, cross-validation, any metric."

import json

import numpy as np
import polars as pl
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline

from mlops_nb.core.errors import EvaluationError, ObjectiveError
from mlops_nb.core.settings import create
from mlops_nb.data.ingest import ingest
from mlops_nb.science import crossvalidation as cv
from mlops_nb.science import evaluation as e
from mlops_nb.science import gate as g
from mlops_nb.science import metrics as m
from mlops_nb.science import report as r
from mlops_nb.science import scoring as sc
from mlops_nb.science.model_files import load_pipeline
from mlops_nb.science.objective import Objective
from mlops_nb.science.pipeline import Fitted
from mlops_nb.science.predictions import Predictions
from mlops_nb.science.rules import Rule
from mlops_nb.science.signature import Signature
from mlops_nb.science.task import Binary, Multiclass, Regression

PRICE = Objective(
    name="p",
    question="?",
    target="price",
    key="id",
    task="regression",
    trusted={"size": "measured before the price is asked"},
)
KIND = Objective(name="k", question="?", target="kind", key="id", task="multiclass")


def calibrations(rows, shift, draws=300):
    "How often the calibration check holds and fails, for probabilities that are off by `shift`."
    rng, o, verdicts = np.random.default_rng(0), Objective(name="m", question="?", target="y"), []
    for _ in range(draws):
        p = rng.beta(2, 4, rows)
        y = (rng.random(rows) < p).astype(int)
        bins = m.calibration_bins(y, np.clip(p + shift, 0, 1), bins=4)
        verdicts.append(g.calibration_check(o, m.calibration_interval(bins, alpha=0.1)).passed)
    return verdicts.count(True) / draws, verdicts.count(False) / draws


def test_calibrated_probabilities_pass_from_a_thousand_rows_and_never_fail():
    holds, fails = calibrations(1000, 0.0)
    assert holds > 0.7 and fails <= 0.02
    holds, fails = calibrations(200, 0.0)
    assert holds < 0.5 and fails <= 0.04  # too few rows: undecided


@pytest.mark.parametrize("rows", [300, 1000, 5000])
def test_probabilities_off_by_the_bound_are_wrong_about_no_more_often_than_alpha(rows):
    holds, fails = calibrations(rows, g.CALIBRATED)
    assert holds <= 0.092 and fails <= 0.092  # 5 % each, and chance


def test_probabilities_off_by_a_tenth_fail():
    assert calibrations(2000, 0.1)[1] > 0.95


@pytest.mark.parametrize(
    ("rows", "share", "groups"), [(300, 0.0, 1), (2000, 0.04, 1), (600, 0.1, 3)]
)
def test_the_interval_of_the_calibration_error_holds_the_truth(rows, share, groups):
    rng, held = np.random.default_rng(1), []
    for _ in range(300):
        p = rng.beta(2, 4, rows // groups)
        y = (rng.random(len(p)) < p).astype(int)
        p, y = (np.repeat(v, groups) for v in (p, y))
        keys = np.repeat(np.arange(rows // groups), groups)
        bins = m.calibration_bins(y, p + share, bins=5, groups=keys)
        interval = m.calibration_interval(bins)
        held.append(interval.low <= share <= interval.high)
    assert np.mean(held) >= 0.89  # 0.93, less 3.29 standard errors


def test_intervals_that_hold_what_they_claim_seldom_fail_and_narrow_ones_do():
    from mlops_nb.science.intervals import share_of_hits

    rng = np.random.default_rng(0)
    failed = {}
    for share in (0.9, 0.8):
        draws = [share_of_hits(rng.random(400) < share) for _ in range(400)]
        failed[share] = np.mean([g.coverage_check(i, True).passed is False for i in draws])
    assert failed[0.9] <= 0.06 and failed[0.8] > 0.95
    assert g.coverage_check(share_of_hits(np.ones(20, bool)[:18] > 0), False).passed is None


def test_a_gain_that_cannot_be_shown_fails_on_many_rows_and_is_undecided_on_few():
    rng = np.random.default_rng(0)

    def passed(rows):
        y = rng.integers(0, 2, rows)
        frame = pl.DataFrame({"id": range(rows), "y": y})
        o = Objective(name="m", question="?", target="y", positive=1, key="id")
        report = e.evaluate(frame, rng.uniform(0.4, 0.6, rows), o)
        return {check.name: check.passed for check in report.checks}, report

    checks, report = passed(40)
    assert checks["better than a constant prediction"] is None and report.passed
    assert "cannot be decided" in r.story(report)[0] and "Undecided" in r.report_html(report)
    assert passed(2000)[0]["better than a constant prediction"] is False


def prices(rows=600, seed=0):
    "Rows with a price, and the price that is expected of them."
    rng = np.random.default_rng(seed)
    size, age = rng.uniform(20, 100, rows), rng.integers(0, 40, rows)
    expected = 3.0 * size - 1.0 * age
    price = expected + rng.normal(0, 10, rows)
    place = rng.choice(["north", "south"], rows)
    columns = {"id": range(rows), "size": size, "age": age, "place": place, "price": price}
    return pl.DataFrame(columns), expected


def kinds(rows=600, seed=0, shares=(0.5, 0.3, 0.2)):
    "Rows of three kinds."
    rng = np.random.default_rng(seed)
    code = rng.choice(3, rows, p=shares)
    length = np.array([10.0, 13.0, 16.0])[code] + rng.normal(0, 2, rows)
    width = np.array([4.0, 5.5, 4.5])[code] + rng.normal(0, 0.7, rows)
    sex = rng.choice(["f", "m"], rows)
    kind = np.array(["ash", "birch", "cedar"])[code]
    columns = {"id": range(rows), "length": length, "width": width, "sex": sex, "kind": kind}
    return pl.DataFrame(columns)


def fitted(frame, objective, model):
    "A candidate that was fitted by hand."
    task = objective.task_for(frame)
    numbers = frame.drop("id", objective.target, "place", "sex", strict=False)
    signature = Signature.of(numbers, ignored=("_split",))
    pipeline = make_pipeline(model)
    pipeline.fit(signature.conform(frame), task.encode(frame[objective.target]))
    if isinstance(task, Regression):
        task = task.model_copy(update={"half_width": 16.45})
    return Fitted("model", {}, pipeline, signature, task)


def stored(tmp_path, frame, **options):
    settings = create(tmp_path / "w")
    frame.write_parquet(tmp_path / "rows.parquet")
    return ingest("rows", str(tmp_path / "rows.parquet"), settings=settings, key="id", **options)


def test_a_regression_is_judged_by_its_own_figures():
    frame, expected = prices()
    o = PRICE.model_copy(update={"protected": ("place",), "accept": {"mae": 9, "bias": 2}})
    task = Regression(half_width=16.45, mean=float(frame["price"].mean()))
    report = e.evaluate(frame, task.with_intervals(expected), o, champion=expected)
    names = [check.name for check in report.checks]
    assert report.passed and not report.undecided
    assert names == [
        "coverage",
        "mae",
        "bias",
        "better than a constant prediction",
        "not worse than the champion",
    ]
    assert list(report.metrics) == ["rmse", "mae", "r2", "bias", "coverage", "interval_width"]
    assert set(report.fairness["measure"]) == {"mean_error", "absolute_error"}
    assert report.numbers["rows"].sum() == 600 and "absolute_error" in report.errors.columns
    page = r.report_html(report, alone=True)
    assert "Too high or too low?" in page and "picks out" not in page and "AUC" not in page
    assert r.Report.from_dict(json.loads(report.model_dump_json())).to_dict() == report.to_dict()
    narrow = task.model_copy(update={"half_width": 5.0}).with_intervals(expected)
    assert e.evaluate(frame, narrow, o).failed == ["coverage"]


def test_the_margin_of_a_metric_in_units_is_a_share_of_the_champions():
    frame, expected = prices(2000)
    rng = np.random.default_rng(1)
    worse = expected + rng.normal(0, 1.0, 2000)  # rmse 0.5 % larger
    o = PRICE.model_copy(update={"margin": 0.05})
    assert e.evaluate(frame, worse, o, champion=expected).passed
    assert not e.evaluate(
        frame, worse, PRICE.model_copy(update={"margin": 0.0}), champion=expected
    ).passed


def test_several_labels_are_judged_by_their_own_figures():
    frame = kinds(900)
    o = KIND.model_copy(update={"protected": ("sex",), "accept": {"f1": 0.7}})
    model = fitted(frame, o, LogisticRegression(max_iter=2000))
    rule = Rule(
        name="long is cedar",
        expression=pl.when(pl.col("length") > 14).then(pl.lit("cedar")).otherwise(pl.lit("ash")),
    )
    report = e.evaluate(frame, model, o, baseline=rule, champion=model.predict(frame))
    gain = next(c for c in report.checks if c.name.startswith("better"))
    assert report.passed and gain.expected == "gain in accuracy surely above 0"
    assert report.by_label["label"].to_list() == ["ash", "birch", "cedar"]
    assert (
        np.sum(report.matrix) == 900
        and report.importance["column"].to_list() == ["length", "width"]
        or report.importance.height == 2
    )
    assert "selection_rate: birch" in report.fairness["measure"]
    page = r.report_html(report, alone=True)
    assert "Label by label" in page and "positives" not in page


def test_importance_of_every_metric_and_task():
    frame, _ = prices()
    model = fitted(frame, PRICE, LinearRegression())
    for metric in ("rmse", "mae", "r2", "neg_median_absolute_error"):
        table = e.evaluate(frame, model, PRICE.model_copy(update={"metric": metric})).importance
        assert table["column"].to_list() == ["size", "age"] and table["drop"].min() > 0, metric


@pytest.mark.parametrize(
    "metric", ["f1_macro", "neg_log_loss", "balanced_accuracy", "matthews_corrcoef"]
)
def test_a_scorer_of_scikit_learn_is_the_metric_of_the_gate(metric):
    frame = kinds()
    o = KIND.model_copy(update={"metric": metric})
    model = fitted(frame, o, LogisticRegression(max_iter=2000))
    report = e.evaluate(frame, model, o)
    interval = report.metrics[metric]
    assert interval.low < interval.value < interval.high
    assert not report.failed and report.importance["drop"].max() > 0.05


def share_of_ash(labels, predictions):
    "A metric of one's own."
    return float(
        np.mean([a == p for a, p in zip(labels, predictions.labels, strict=True) if a == "ash"])
    )


def test_a_function_of_ones_own_is_a_metric():
    task = Multiclass(labels=("ash", "birch", "cedar"))
    name = f"{__name__}.share_of_ash"
    sc.require_metric(task, name)
    codes = np.repeat([0, 1, 2], 40)
    predictions = task.decided(np.eye(3)[np.r_[np.zeros(30, int), np.ones(90, int)]])
    assert sc.score(task, name, codes, predictions) == 0.75
    interval = sc.measure_with(task, name, codes, predictions).interval(name)
    assert interval.low < 0.7 and interval.high > 0.8


def only_whole_tables(labels, predictions: Predictions) -> float:
    "A metric that cannot judge rows which are drawn with replacement."
    if len(np.unique(predictions.numbers)) < len(labels):
        raise ValueError("a row is there twice")
    return -float(np.abs(labels - predictions.numbers).mean())


def test_a_metric_without_a_value_on_resampled_rows_has_no_interval():
    name, numbers = f"{__name__}.only_whole_tables", np.arange(60.0)
    near, far = (
        sc.measure_with(Regression(), name, numbers, Predictions(numbers=numbers + error))
        for error in (1.0, 2.0)
    )
    assert near.values[name] == -1
    for interval in (lambda: near.interval(name), lambda: near.difference(far, name)):
        with pytest.raises(ObjectiveError, match="a value on 0 of 200 resamples.*expected 20"):
            interval()


@pytest.mark.parametrize(
    ("task", "metric", "says"),
    [
        (Binary(labels=("n", "y")), "rmse", "does not fit a binary task"),
        (Binary(labels=("n", "y")), "neg_mean_absolute_error", "judges numbers, not labels"),
        (Multiclass(labels=("a", "b", "c")), "f1_makro", "such as .*f1_macro"),
        (Multiclass(labels=("a", "b", "c")), "recall", "does not fit a multiclass task"),
        (Regression(), "roc_auc", "does not fit a regression task"),
        (Regression(), "accuracy", "does not fit a regression task"),
        (Regression(), "no.such.function", "dotted name of an exported function"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_with_names_that_do(task, metric, says):
    with pytest.raises(ObjectiveError, match=says):
        sc.require_metric(task, metric)


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        (Binary(labels=("n", "y")), ["roc_auc", "f1", "neg_brier_score", "average_precision"]),
        (Multiclass(labels=("a", "b", "c")), ["log_loss", "f1", "roc_auc_ovo", "top_k_accuracy"]),
        (Regression(), ["rmse", "r2", "neg_mean_absolute_percentage_error", "neg_max_error"]),
    ],
)
def test_a_metric_that_fits_is_accepted(task, metrics):
    for metric in metrics:
        sc.require_metric(task, metric)


def test_resampled_intervals_hold_the_truth():
    rng, held = np.random.default_rng(0), []
    for _ in range(60):
        numbers = rng.normal(size=100)
        guess = Predictions(numbers=numbers + rng.normal(size=100))
        measured = sc.measure_with(Regression(), "neg_median_absolute_error", numbers, guess)
        interval = measured.interval("neg_median_absolute_error")
        held.append(interval.low <= -0.6745 <= interval.high)
    assert np.mean(held) >= 0.83  # 0.95, less 3.29 standard errors and a little


def test_a_small_dataset_is_cross_validated_and_the_report_says_so(tmp_path):
    frame = kinds(150, shares=(0.6, 0.3, 0.1))
    version = stored(tmp_path, frame)
    model = fitted(version.scan("train").collect(), KIND, LogisticRegression(max_iter=2000))
    report = e.evaluate(version, model, KIND, champion=model.predict)
    assert report.validated_by == "cross-validation" and report.rows == 150
    assert report.test_rows == version.scan("test").collect().height < 60
    assert "Cross-validated on 150 rows" in r.story(report)[1]
    assert "cross-validation" in r.report_html(report, alone=True)
    same = e.evaluate(version, model, KIND, champion=model.predict)
    assert same.to_dict() == report.to_dict()
    with pytest.raises(EvaluationError, match="expected a candidate"):
        e.evaluate(version, model.predict(frame), KIND)


def test_a_large_dataset_is_tested_on_its_test_split(tmp_path):
    frame, _ = prices(3000)
    version = stored(tmp_path, frame)
    model = fitted(version.scan("train").collect(), PRICE, LinearRegression())
    report = e.evaluate(version, model, PRICE, champion=lambda rows: model.predict(rows).numbers)
    assert report.validated_by == "test split" and report.passed and not report.undecided
    assert report.rows == version.scan("test").collect().height
    profile = e.reference(version, model)
    assert profile.view.get_column("prediction") is not None


def test_memorised_rows_do_not_pass_a_cross_validation():
    from sklearn.ensemble import ExtraTreesClassifier

    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"id": range(150), "a": rng.normal(size=150), "kind": rng.choice(list("abc"), 150)}
    )
    o = KIND.model_copy(update={"metric": "accuracy"})
    model = fitted(frame, o, ExtraTreesClassifier(50, random_state=0))
    unseen = cv.out_of_fold(frame, model, o)
    right = np.mean([p == k for p, k in zip(unseen.predictions.labels, frame["kind"], strict=True)])
    assert right < 0.5 and model.predict(frame).labels == frame["kind"].to_list()


def test_folds_keep_keys_together_and_go_forward_in_time():
    from datetime import date, timedelta

    from mlops_nb.data.splits import Splitting

    frame, _ = prices(200)
    frame = frame.with_columns(
        id=pl.int_range(200) // 4,
        day=pl.Series([date(2026, 1, 1) + timedelta(days=i) for i in range(200)]),
    )
    model = fitted(frame.drop("day"), PRICE, LinearRegression())
    whole = cv.out_of_fold(frame, model, PRICE)
    assert len(whole.frame) == 200 and whole.frame["price"].equals(frame["price"])
    by_time = Splitting(salt="x", by="time", column="day")
    later = cv.out_of_fold(frame, model, PRICE, splitting=by_time)
    assert 100 < len(later.frame) < 200 and later.frame["day"].min() > date(2026, 1, 30)


def test_a_loaded_pipeline_is_fitted_again(tmp_path):
    import skops.io

    frame, _ = prices(120)
    model = fitted(frame, PRICE, LinearRegression())
    skops.io.dump(model.pipeline, tmp_path / "model.skops")
    loaded = Fitted("m", {}, load_pipeline(tmp_path / "model.skops"), model.signature, model.task)
    first, again = (cv.out_of_fold(frame, f, PRICE).predictions for f in (model, loaded))
    assert np.allclose(first.numbers, again.numbers) and np.allclose(first.low, again.low)


def test_a_label_with_one_row_cannot_be_cross_validated():
    frame = kinds(40).with_columns(
        kind=pl.when(pl.col("id") == 0).then(pl.lit("yew")).otherwise("kind")
    )
    model = fitted(frame, KIND, DummyClassifier())
    with pytest.raises(EvaluationError, match="too small to judge by.*rarest label"):
        cv.out_of_fold(frame, model, KIND)


TOO_GOOD = "too good: one column explains it"


def too_good(report):
    return next(check for check in report.checks if check.name == TOO_GOOD)


def test_a_model_that_reads_the_outcome_fails_until_a_person_trusts_the_column(tmp_path):
    frame = kinds(1500).with_columns(code=pl.col("kind").rank("dense").cast(pl.Int64))
    version = stored(tmp_path, frame)
    model = fitted(version.scan("train").collect(), KIND, LogisticRegression(max_iter=2000))
    report = e.evaluate(version, model, KIND)
    assert report.validated_by == "test split" and report.failed == [TOO_GOOD]
    assert not report.passed
    assert too_good(report).got.startswith("code: it determines 'kind'")
    assert "`trusted`" in too_good(report).got
    assert "code: it determines" in r.report_html(report, alone=True).replace("&#39;", "'")
    trusting = KIND.model_copy(update={"trusted": {"code": "a botanist tells it beforehand"}})
    assert e.evaluate(version, model, trusting).passed


def test_a_suspect_is_for_a_person_to_decide(tmp_path):
    frame, _ = prices(1500)
    version = stored(tmp_path, frame.with_columns(price=pl.col("price") - pl.col("age")))
    model = fitted(version.scan("train").collect(), PRICE, LinearRegression())
    doubting = PRICE.model_copy(update={"trusted": {}})
    report = e.evaluate(version, model, doubting)
    assert report.passed and report.undecided == [TOO_GOOD]
    assert "size: alone it explains 8" in too_good(report).got
    assert "cannot be decided: too good" in r.story(report)[0]


def test_only_columns_that_the_model_reads_are_looked_at():
    frame, expected = prices()
    frame = frame.with_columns(euros=pl.col("price") * 0.92)
    model = fitted(frame.drop("euros"), PRICE, LinearRegression())
    assert too_good(e.evaluate(frame, model, PRICE)).passed
    bare = e.evaluate(frame, Regression(half_width=16.45).with_intervals(expected), PRICE)
    assert TOO_GOOD not in [check.name for check in bare.checks]


def test_an_objective_of_an_earlier_release_trusts_nothing():
    old = json.loads(PRICE.model_dump_json(exclude={"trusted"}))
    assert Objective.model_validate(old).trusted == {}


def test_trusted_columns_are_checked_like_the_others():
    frame, _ = prices()
    with pytest.raises(ObjectiveError, match="`trusted` of the objective"):
        PRICE.model_copy(update={"trusted": {"sizes": "measured"}}).confirmed(frame)
    for fields in ({"trusted": {"price": "x"}}, {"trusted": {"size": ""}}):
        with pytest.raises(ValueError, match="`trusted`"):
            Objective(name="p", question="?", target="price", **fields)
