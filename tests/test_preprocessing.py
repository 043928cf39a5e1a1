"Tables in the wild become numbers: by rule, by choice, inside the folds, and back from a file."

import sys
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import skops.io
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from mlops_nb.core.errors import TrainingError
from mlops_nb.science.candidates import Candidate, build_pipeline, candidate_treatments
from mlops_nb.science.fitting import LogTarget, counted_rows, fit_params, row_weights
from mlops_nb.science.model_files import is_allowed, load_pipeline
from mlops_nb.science.objective import Objective
from mlops_nb.science.pipeline import fit, make_signature
from mlops_nb.science.preprocessing import date_numbers
from mlops_nb.science.signature import Signature

OBJECTIVE = Objective(name="t", question="?", target="y", positive=1, key="id")
LINEAR = Candidate("linear", LogisticRegression(max_iter=1000))
BOOSTING = Candidate("boosting", HistGradientBoostingClassifier(max_iter=30))
CLASSIFIERS = [
    LogisticRegression(max_iter=1000),
    HistGradientBoostingClassifier(max_iter=20),
    RandomForestClassifier(20),
    GradientBoostingClassifier(n_estimators=10),
    KNeighborsClassifier(),
]
WORDS = "late broken slow great kind fast cheap dear never always again soon".split()


def wild(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    "A table with a column of each kind that tables in the wild have."
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    some = lambda values: [None if rng.random() < 0.1 else v for v in values]
    day = [date(2024, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 700, rows)]
    text = [
        " ".join(rng.choice(WORDS[:6] if v else WORDS[6:], 5)) + f" n{i}" for i, v in enumerate(y)
    ]
    return pl.DataFrame(
        {
            "id": range(rows),
            "y": y,
            "number": some(rng.normal(size=rows) + y),
            "flag": pl.Series(some(rng.random(rows) < 0.5), dtype=pl.Boolean),
            "few": some(rng.choice(["a", "b", "c"], rows)),
            "fifty": rng.choice([f"v{i}" for i in range(50)], rows),
            "code": [f"x{i}" for i in range(rows)],
            "day": some(day),
            "sent": [d + timedelta(days=3) for d in day],
            "at": [
                datetime(2024, 1, 1, i % 24, tzinfo=UTC) + timedelta(days=i) for i in range(rows)
            ],
            "text": some(text),
            "none": pl.Series([None] * rows, dtype=pl.Float64),
            "same": ["EUR"] * rows,
        }
    )


def pipeline_of(frame: pl.DataFrame, candidate: Candidate, task: str = "binary", features=None):
    "Return signature and pipeline, fitted on a frame."
    signature = Signature.of(frame, ignored=("id", "y"))
    inputs = signature.conform(frame)
    pipeline = build_pipeline(candidate, {}, signature, features, task=task, rows=inputs)
    return signature, pipeline.fit(inputs, frame["y"].to_numpy())


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(e).__name__)
def test_every_kind_of_column_reaches_every_kind_of_estimator(estimator):
    fitted = fit(wild(), OBJECTIVE, Candidate("c", estimator))
    assert list(fitted.signature.unused) == ["code", "none", "same"]
    assert roc_auc_score(wild(seed=1)["y"], fitted.probability(wild(seed=1))) > 0.6
    again = load_pipeline(skops.io.dumps(fitted.pipeline))
    inputs = fitted.signature.conform(wild(seed=2))
    assert (again.predict_proba(inputs) == fitted.pipeline.predict_proba(inputs)).all()
    one = again.predict_proba(inputs[:1])
    assert np.allclose(one, again.predict_proba(inputs)[:1])


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: type(e).__name__)
def test_a_row_of_unknown_levels_and_one_of_nulls_are_predicted(estimator):
    fitted = fit(wild(), OBJECTIVE, Candidate("c", estimator))
    row = fitted.signature.conform(wild())[:1]
    strange = row.with_columns(few=pl.lit("?"), fifty=pl.lit("?"), text=pl.lit("Ωmega"))
    nulls = row.clear(n=1)
    for other in (strange, nulls, row.with_columns(day=date(1900, 1, 1))):
        assert np.isfinite(fitted.pipeline.predict_proba(other)).all()


def test_nothing_that_training_drops_is_demanded_and_each_reason_is_there():
    signature = make_signature(wild(), OBJECTIVE)
    assert signature.unused == {
        "code": "300 different values in 300 rows: looks like an identifier",
        "none": "no value in 300 rows",
        "same": "the same value in all 300 rows",
    }
    nullable = {c.name for c in signature.columns if c.nullable}
    assert nullable == {"number", "flag", "few", "day", "text"}
    untyped = wild().with_columns(none=pl.lit(None))
    assert "none" in make_signature(untyped, OBJECTIVE).unused


def test_a_constant_column_that_the_features_need_is_demanded(tmp_path, monkeypatch):
    (tmp_path / "wildpkg.py").write_text(
        "import polars as pl\n"
        "def kept(frame): return frame.with_columns(\n"
        "    euro=pl.when(pl.col('same') == 'EUR').then('number').otherwise(0.0))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        fitted = fit(wild(), OBJECTIVE, LINEAR, features="wildpkg.kept")
    finally:
        sys.modules.pop("wildpkg", None)
    assert "same" in {c.name for c in fitted.signature.columns}
    assert list(fitted.signature.unused) == ["code", "none"]


def test_a_choice_overrides_the_rule_and_a_dropped_column_is_not_demanded():
    columns = {"code": "target", "few": "drop", "flag": "category", "text": "drop"}
    candidate = Candidate("c", LogisticRegression(max_iter=1000), columns=columns)
    fitted = fit(wild(), OBJECTIVE, candidate)
    assert fitted.signature.unused["few"] == "chosen: the model does not use it"
    by_name = {name: names for name, _, names in fitted.pipeline["columns"].transformers_}
    assert "code" in by_name["target"] and "flag" in by_name["one-hot"]
    both = make_signature(wild(), OBJECTIVE, candidates=[candidate, LINEAR])
    assert "few" not in both.unused and "code" not in both.unused


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"few": "date"}, "'few' cannot be treated as date: expected date or datetime"),
        ({"number": "words"}, "'number': expected one of number, category"),
        ({"nummer": "number"}, r"\['nummer'\] are chosen: expected names among number"),
        ({"id": "number"}, r"\['id'\] are chosen"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(columns, message):
    with pytest.raises(TrainingError, match=message):
        fit(wild(), OBJECTIVE, Candidate("c", LogisticRegression(), columns=columns))


def test_what_boosting_gets_as_categories_are_the_native_columns():
    _, pipeline = pipeline_of(wild(), BOOSTING)
    assert pipeline["estimator"].categorical_features == [0]
    assert pipeline["estimator"].is_categorical_.sum() == 1
    plain = Candidate("c", HistGradientBoostingClassifier(categorical_features=None))
    assert pipeline_of(wild(), plain)[1]["estimator"].categorical_features is None
    with pytest.raises(TrainingError, match="choose by column names"):
        Candidate("c", HistGradientBoostingClassifier(categorical_features=[0]))


@pytest.mark.parametrize("candidate", [LINEAR, BOOSTING], ids=lambda c: c.name)
def test_a_category_of_chance_tells_nothing_about_a_target_of_chance(candidate):
    "Cross-validated, over five tables: no better than chance, and no worse."
    scores = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        codes = [f"c{i}" for i in rng.integers(0, 400, 1200)]
        frame = pl.DataFrame({"id": range(1200), "y": rng.integers(0, 2, 1200), "code": codes})
        probability = np.empty(1200)
        for learn, score in KFold(4, shuffle=True, random_state=seed).split(codes):
            signature, pipeline = pipeline_of(frame[learn], candidate)
            probability[score] = pipeline.predict_proba(signature.conform(frame[score]))[:, 1]
        scores.append(roc_auc_score(frame["y"], probability))
    assert abs(np.mean(scores) - 0.5) < 0.03, scores


def test_target_encoding_serves_each_task():
    rng = np.random.default_rng(0)
    code = rng.integers(0, 300, 3000)
    codes = [f"c{i}" for i in code]
    frame = pl.DataFrame({"id": range(3000), "code": codes})
    effect = rng.normal(size=300)[code]
    numbers = frame.with_columns(y=effect + rng.normal(size=3000) / 5)
    signature, ridge = pipeline_of(numbers, Candidate("r", Ridge()), "regression")
    assert r2_score(numbers["y"], ridge.predict(signature.conform(numbers))) > 0.9
    classes = frame.with_columns(y=pl.Series(np.digitize(effect, [-0.5, 0.5])))
    signature, logistic = pipeline_of(classes, LINEAR, "multiclass")
    assert logistic.predict_proba(signature.conform(classes)).shape == (3000, 3)
    assert (logistic.predict(signature.conform(classes)) == classes["y"].to_numpy()).mean() > 0.9


def test_ages_count_from_the_latest_date_of_training_and_never_from_now():
    frame = pl.DataFrame({"a": [date(2026, 1, 1), None], "b": [date(2026, 1, 11), None]})
    latest = {"a": 1_768_089_600_000_000, "b": 1_768_089_600_000_000}  # 2026-01-11
    numbers = date_numbers(frame, {"a": ["month", "weekday"]}, latest, indicated=["b"])
    assert numbers[0].tolist() == [10, 0, 10, 1, 4, 0]
    assert np.isnan(numbers[1, :5]).all() and numbers[1, 5] == 1
    cyclic = date_numbers(frame[:1], {"a": ["month"]}, latest, cyclic=True)
    assert cyclic[0, 3:].tolist() == [0, 1]
    many = pl.DataFrame({f"d{i}": [date(2026, 1, 1 + i)] for i in range(6)})
    assert date_numbers(many, {}, dict.fromkeys(many.columns, 0)).shape == (1, 6 + 5)


def test_a_date_is_worth_what_it_says():
    "A target that follows weekdays is learnt from the date alone, by trees and by lines."
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(600)]
    y = [int(d.weekday() >= 5) for d in days]
    frame = pl.DataFrame({"id": range(600), "y": y, "day": days})
    for candidate in (LINEAR, BOOSTING):
        signature, pipeline = pipeline_of(frame[:400], candidate)
        probability = pipeline.predict_proba(signature.conform(frame[400:]))[:, 1]
        assert roc_auc_score(y[400:], probability) > 0.95


def test_a_text_is_worth_its_words():
    signature, pipeline = pipeline_of(wild().select("id", "y", "text"), LINEAR)
    other = wild(seed=3).select("id", "y", "text")
    assert roc_auc_score(other["y"], pipeline.predict_proba(signature.conform(other))[:, 1]) > 0.9
    assert pipeline["columns"].transform(signature.conform(other)).shape[1] <= 30


def test_infinite_numbers_count_as_missing():
    infinite = wild().with_columns(number=pl.lit(float("inf")))
    fitted = fit(wild(), OBJECTIVE, LINEAR)
    nulls = infinite.with_columns(number=pl.lit(None, dtype=pl.Float64))
    assert (fitted.probability(infinite) == fitted.probability(nulls)).all()


def test_without_rows_the_types_decide():
    signature = make_signature(wild(), OBJECTIVE)
    for candidate in (LINEAR, BOOSTING):
        by_types = candidate_treatments(candidate, signature)
        assert by_types.used == [c.name for c in signature.columns]
        assert build_pipeline(candidate, {}, signature)
        html = candidate_treatments(candidate, signature, rows=wild())._repr_html_()
        assert "How each column is treated" in html


# Weights


def weighing(name: str = "w"):
    "The fields of an objective that matter to weights."
    return SimpleNamespace(weight=name, target="y")


def test_rows_of_weight_zero_are_as_if_they_were_not_there():
    frame = wild().with_columns(w=pl.Series([0.0, 2.0] * 150))
    counted = counted_rows(frame, weighing())
    assert counted.height == 150 and counted["w"].unique().to_list() == [2.0]
    inputs = ["number", "few"]
    signature = Signature.of(frame.select(inputs))
    x, y = signature.conform(frame), frame["y"].to_numpy()
    weights = fit_params(frame, weighing(), LogisticRegression())
    whole = build_pipeline(BOOSTING, {}, signature, rows=x).fit(x, y, **weights)
    other = build_pipeline(BOOSTING, {}, signature, rows=x).fit(x, y)
    assert not np.allclose(whole.predict_proba(x), other.predict_proba(x))
    flipped = np.where(frame["w"] == 0, 1 - y, y)  # labels of rows that do not count
    again = build_pipeline(BOOSTING, {}, signature, rows=x).fit(x, flipped, **weights)
    assert np.allclose(whole.predict_proba(x), again.predict_proba(x), atol=0.02)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], "finite numbers of 0 or more, got -1 in row 1"),
        ([1.0, None], "got nan in row 1"),
        ([float("inf"), 1.0], "got inf in row 0"),
        ([0.0, 0.0], "expected one row above 0"),
        (["a", "b"], "expected numbers, got String"),
    ],
)
def test_what_is_no_weight_is_refused(weights, message):
    with pytest.raises(TrainingError, match=message):
        row_weights(pl.DataFrame({"w": weights, "y": [0, 1]}), weighing())
    with pytest.raises(TrainingError, match="column of weights 'v'"):
        row_weights(pl.DataFrame({"w": weights}), weighing("v"))


def test_balanced_is_what_scikit_learn_calls_so():
    frame = wild().filter((pl.col("y") == 0) | (pl.col("id") % 5 == 0)).select("id", "y", "number")
    ours = fit(frame, OBJECTIVE, Candidate("c", LogisticRegression(), balanced=True))
    theirs = fit(frame, OBJECTIVE, Candidate("c", LogisticRegression(class_weight="balanced")))
    assert np.allclose(ours.probability(frame), theirs.probability(frame), atol=1e-4)
    weighted = fit_params(
        frame.with_columns(w=pl.lit(3.0)), weighing(), LogisticRegression(), balanced=True
    )["estimator__sample_weight"]
    ones = (frame["y"] == 1).to_numpy()
    assert np.isclose(weighted[ones].sum(), weighted[~ones].sum())


# Tasks and targets


def test_an_estimator_that_does_not_fit_the_task_is_refused_before_it_learns():
    signature = make_signature(wild(), OBJECTIVE)
    ridge = Candidate("r", Ridge())
    for candidate, task, message in (
        (ridge, "binary", "the target is a class: expected a classifier, got Ridge"),
        (ridge, "multiclass", "expected a classifier"),
        (LINEAR, "regression", "the target is a number: expected a regressor"),
    ):
        with pytest.raises(TrainingError, match=message):
            build_pipeline(candidate, {}, signature, task=task)
    for refused, message in (
        (lambda: Candidate("s", SVC()), "no probabilities"),
        (lambda: Candidate("k", KNeighborsClassifier(), balanced=True), "takes no weights"),
        (lambda: Candidate("k", Ridge(), columns={"a": "b"}), "expected one of"),
    ):
        with pytest.raises(TrainingError, match=message):
            refused()


def skewed(rows: int = 600) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    y = np.exp(6 + x + rng.normal(size=rows) / 5)
    return pl.DataFrame({"id": range(rows), "x": x, "y": y})


def test_a_skewed_target_is_learnt_as_a_logarithm_and_predicted_as_it_is():
    frame = skewed()
    forced = Candidate("l", LinearRegression(), log_target=True)
    signature, logged = pipeline_of(frame, forced, "regression")
    inputs = signature.conform(frame)
    _, plain = pipeline_of(frame, Candidate("l", LinearRegression()), "regression")
    assert type(plain["estimator"]) is LinearRegression
    assert r2_score(frame["y"], logged.predict(inputs)) > r2_score(
        frame["y"], plain.predict(inputs)
    )
    assert (load_pipeline(skops.io.dumps(logged)).predict(inputs) == logged.predict(inputs)).all()
    far = logged.predict(inputs[:1].with_columns(x=pl.lit(1000.0)))
    assert far[0] <= frame["y"].max() * 1.0001


def test_trees_take_the_logarithm_by_rule_and_only_of_what_is_skewed():
    boosting = Candidate("b", HistGradientBoostingRegressor(max_iter=30), {"max_iter": 30})
    _, of_skewed = pipeline_of(skewed(), boosting, "regression")
    assert isinstance(of_skewed["estimator"], TransformedTargetRegressor)
    assert of_skewed["estimator"].transformer_.takes_log_
    even = skewed().with_columns(pl.col("x").alias("y"), x=pl.col("y"))
    _, of_even = pipeline_of(even, boosting, "regression")
    assert not of_even["estimator"].transformer_.takes_log_
    signature = Signature.of(skewed(), ignored=("id", "y"))
    as_it_is = build_pipeline(boosting, {"log_target": False}, signature, task="regression")
    assert type(as_it_is["estimator"]) is HistGradientBoostingRegressor
    with pytest.raises(TrainingError, match="without negative values"):
        LogTarget(only_skewed=False).fit(np.array([-1.0, 1.0]))


def test_the_same_seed_gives_the_same_model():
    probability = [fit(wild(), OBJECTIVE, BOOSTING, seed=5).probability(wild()) for _ in range(2)]
    assert (probability[0] == probability[1]).all()


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("numpy.log1p", True),
        ("numpy.expm1", True),
        ("numpy.load", False),
        ("numpy.vectorize", False),
        ("mlops_nb.science.preprocessing.as_floats", True),
        ("mlops_nb.science.preprocessing.preprocessing", False),
        ("mlops_nb.science.fitting.LogTarget", True),
    ],
)
def test_of_functions_a_model_file_names_universal_ones_and_listed_ones(name, may):
    assert is_allowed(name, "") is may


@pytest.mark.parametrize("estimator", [HistGradientBoostingClassifier(), LogisticRegression()])
def test_columns_with_hardly_a_number_are_left_out(estimator):
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    endless, few = np.where(x > 0, np.inf, -np.inf), [1.0, 2.0, *[None] * 398]
    frame = pl.DataFrame(
        {"y": np.where(x > 0, "yes", "no"), "x": x, "endless": endless, "few": few}
    )
    objective = Objective(name="m", question="?", target="y")
    fitted = fit(frame, objective, Candidate("c", estimator))
    assert np.isfinite(fitted.predict(frame).scores).all()
    assert [column.name for column in fitted.signature.columns] == ["x"]


@pytest.mark.parametrize("estimator", [HistGradientBoostingClassifier(), LogisticRegression()])
def test_dates_that_exclude_each_other_are_not_compared(estimator):
    days = pl.Series("day", [date(2024, 1, 1) + timedelta(days=7 * i) for i in range(60)])
    even = pl.int_range(60, eager=True) % 2 == 0
    frame = pl.DataFrame({"day": days, "even": even, "y": ["no", "yes", "yes"] * 20}).select(
        "y", delivered=pl.when("even").then("day"), cancelled=pl.when(~pl.col("even")).then("day")
    )
    objective = Objective(name="orders", question="?", target="y")
    fitted = fit(frame, objective, Candidate("c", estimator))
    assert np.isfinite(fitted.predict(frame).scores).all()
    both = frame.with_columns(cancelled="delivered")  # seen in no training row
    assert np.isfinite(fitted.predict(both).scores).all()
