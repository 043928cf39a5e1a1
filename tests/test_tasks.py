"Binary, multiclass, regression: one object from the target to the log."

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_wine
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlops_nb.core.errors import LabelError, ObjectiveError
from mlops_nb.science.candidates import Candidate
from mlops_nb.science.exploration import explore
from mlops_nb.science.hypotheses import Hypothesis, check_hypotheses
from mlops_nb.science.objective import Costs, Objective, with_decision
from mlops_nb.science.pipeline import fit, load_candidate_files, save_candidate
from mlops_nb.science.predictions import LOG_COLUMNS
from mlops_nb.science.rules import Rule
from mlops_nb.science.targets import infer_task, task_of
from mlops_nb.science.task import Binary, Multiclass, Regression, load_task


def wine() -> pl.DataFrame:
    data = load_wine()
    names = [name.replace("/", "_") for name in data.feature_names]
    kind = pl.Series("kind", [("Barolo", "Grignolino", "Barbera")[t] for t in data.target])
    split = pl.lit("train").alias("_split")
    return (
        pl.DataFrame(dict(zip(names, data.data.T))).with_columns(kind, split).with_row_index("id")
    )


WINE = Objective(name="wine", question="Which grape?", target="kind", key="id")
ALCOHOL = Objective(name="alcohol", question="How strong?", target="alcohol", key="id")
LOGISTIC = Candidate("logistic", LogisticRegression(max_iter=1000))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False], "binary"),
        ([1.0, 0.0, 1.0], "binary"),
        (["a", "b"], "binary"),
        (["a", "b", "c"], "multiclass"),
        ([1.5, 2.0, 3.0], "regression"),
        (list(range(30)), "regression"),
    ],
)
def test_a_target_says_which_task_it_calls_for(values, kind):
    assert infer_task(pl.Series("y", values)) == kind


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 2, 3, 4, 5], "task='multiclass' or task='regression'"),
        (["a", "a"], "two different values or more, got 1"),
        ([f"id{i}" for i in range(200)], "at most 100 labels, got 200"),
        (["a", None, "b"], "1 rows have no 'y'"),
        ([1.0, float("nan"), 2.0], "1 rows have no 'y'"),
        ([[1], [2], [3]], "labels or numbers"),
    ],
)
def test_a_target_that_calls_for_none_is_refused_in_words(values, says):
    with pytest.raises(ObjectiveError, match=says.replace("[", r"\[")):
        infer_task(pl.Series("y", values, strict=False))


def test_dates_are_no_target():
    days = pl.date_range(pl.date(2026, 1, 1), pl.date(2026, 3, 1), eager=True).alias("day")
    with pytest.raises(ObjectiveError, match="values of type Date"):
        infer_task(days)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["yes", "no"], ("no", "yes")),
        ([True, False], ("false", "true")),
        ([1, 0], ("0", "1")),
        (["good", "bad"], ("bad", "good")),
        (["Positive", "Negative"], ("Negative", "Positive")),
    ],
)
def test_the_positive_label_is_the_one_that_says_yes_or_the_later(values, labels):
    assert task_of(pl.Series("y", values)).labels == labels


def test_a_stated_task_must_fit_the_target():
    with pytest.raises(ObjectiveError, match="expected numbers, got values of type String"):
        task_of(pl.Series("y", ["a", "b"]), "regression")
    with pytest.raises(ObjectiveError, match="expected two labels, got 3"):
        task_of(pl.Series("y", ["a", "b", "c"]), "binary")
    assert task_of(pl.Series("y", [3, 4, 5]), "multiclass").labels == ("3", "4", "5")
    assert task_of(pl.Series("y", [3, 4, 5]), "regression").median == 4


TASKS = [
    Binary(labels=("no", "yes"), threshold=0.3),
    Multiclass(labels=("a", "b", "c"), costs=((0, 1, 1), (5, 0, 5), (1, 1, 0))),
    Regression(mean=5, median=4, half_width=0.5, scale="log1p"),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_predictions_come_back_from_the_log_as_they_were(task):
    rng = np.random.default_rng(0)
    if task.labels:
        predictions = task.decided(rng.dirichlet(np.ones(len(task.labels)), 20))
    else:
        predictions = task.with_intervals(rng.exponential(5, 20))
    logged = pl.DataFrame(task.log_columns(predictions), schema=LOG_COLUMNS)
    back = task.from_log(logged)
    assert back.labels == predictions.labels
    for name in ("scores", "numbers", "low", "high"):
        expected, actual = getattr(predictions, name), getattr(back, name)
        assert (expected is None) == (actual is None)
        assert expected is None or np.allclose(expected, actual, atol=1e-15)
    assert task.usable(back).all() and len(task.watched(back)) == 20
    assert len(task.answers(task.log_columns(predictions))) == 20
    assert load_task(task.model_dump(mode="json")) == task
    assert len(task.constant(7)) == 7


def test_rows_of_an_earlier_log_are_read():
    old = pl.DataFrame({"prediction": ["yes", "no"], "probability": [0.8, None]})
    predictions = TASKS[0].from_log(old)
    assert predictions.labels == ["yes", "no"]
    assert TASKS[0].usable(predictions).tolist() == [True, False]


@pytest.mark.parametrize("task", TASKS[:2], ids=lambda task: task.kind)
def test_a_label_that_is_none_is_refused_or_null(task):
    with pytest.raises(LabelError, match="expected .*, got 'other'"):
        task.encode(pl.Series("y", [task.labels[0], "other"]))
    with pytest.raises(LabelError, match="a missing value"):
        task.encode(pl.Series("y", [task.labels[0], None]))
    assert task.spelled("other") is None and task.spelled(["a"]) is None
    assert task.parse(pl.Series([task.labels[1], "other", None])).to_list() == [1, None, None]


def test_reported_numbers_are_finite():
    task = TASKS[2]
    values = [1, "2.50", True, "many", float("inf"), None, 10**400]
    assert [task.spelled(v) for v in values] == ["1", "2.5", None, None, None, None, None]


def test_costs_decide_and_an_objective_may_change_them():
    scores = np.array([[0.5, 0.3, 0.2]])
    plain = Multiclass(labels=("a", "b", "c"))
    costs = {"b": {"a": 10, "c": 10}}
    dear = Objective(name="m", question="?", target="y", task="multiclass", costs=costs)
    assert plain.decided(scores).labels == ["a"]
    assert with_decision(plain, dear).decided(scores).labels == ["b"]
    two = Objective(
        name="m",
        question="?",
        target="y",
        positive=1,
        costs=Costs(false_positive=1, false_negative=9),
    )
    assert with_decision(Binary(labels=("0", "1")), two).threshold == pytest.approx(0.1)


def test_an_objective_is_confirmed_by_its_target():
    confirmed = WINE.confirmed(wine())
    assert (confirmed.task, confirmed.metric) == ("multiclass", "log_loss")
    assert ALCOHOL.confirmed(wine()).metric == "rmse"
    assert WINE.confirmed(wine()).confirmed(wine()) == confirmed


def test_what_an_objective_hides_no_model_sees():
    frame = wine().with_columns(weight=pl.lit(1.0), lot=pl.lit("a"), leak=pl.col("kind"))
    objective = WINE.model_copy(
        update={"weight": "weight", "group": "lot", "ignore": {"leak": "known afterwards"}}
    )
    fitted = fit(frame, objective, LOGISTIC)
    names = [column.name for column in fitted.signature.columns]
    assert not {"id", "kind", "weight", "lot", "leak"} & set(names) and "hue" in names
    assert fitted.signature.unused["leak"] == "known afterwards"
    row = frame.head(1).select(names).to_dicts()[0] | {"leak": "x", "weight": 2, "lot": "b"}
    assert fitted.signature.frame([row]).columns == names


def test_several_labels_are_fitted_saved_and_loaded(tmp_path):
    frame = wine()
    fitted = fit(frame, WINE, LOGISTIC)
    predictions = fitted.predict(frame)
    assert np.mean(np.array(predictions.labels) == frame["kind"].to_numpy()) > 0.95
    loaded = load_candidate_files(save_candidate(fitted, tmp_path))
    assert loaded.task == fitted.task
    assert (loaded.predict(frame).scores == predictions.scores).all()


def test_a_label_that_a_fold_lacks_has_probability_zero():
    frame = wine()
    task = WINE.task_for(frame)
    fitted = fit(frame.filter(pl.col("kind") != "Barbera"), WINE, LOGISTIC, task=task)
    scores = fitted.predict(frame).scores
    assert scores.shape == (178, 3) and (scores[:, task.labels.index("Barbera")] == 0).all()


def skewed(rng: np.random.Generator, rows: int) -> pl.DataFrame:
    x = rng.normal(size=(3, rows))
    noise = rng.standard_t(4, rows)
    y = 5 + 2 * x[0] - x[1] * x[2] + noise
    return pl.DataFrame({"id": np.arange(rows), "a": x[0], "b": x[1], "c": x[2], "y": y})


@pytest.mark.parametrize(
    "estimator", [LinearRegression(), HistGradientBoostingRegressor(max_iter=40)]
)
def test_intervals_of_a_regression_hold_nine_of_ten_new_numbers(estimator):
    rng = np.random.default_rng(0)
    objective = Objective(name="m", question="?", target="y", key="id")
    shares = []
    for _ in range(20):
        fitted = fit(skewed(rng, 300), objective, Candidate("m", estimator))
        new = skewed(rng, 2000)
        predicted = fitted.predict(new)
        y = new["y"].to_numpy()
        shares.append(((predicted.low <= y) & (y <= predicted.high)).mean())
    assert 0.885 <= np.mean(shares) <= 0.95


def test_a_rule_answers_in_the_terms_of_the_task():
    frame = wine()
    strong = pl.when(pl.col("alcohol") > 13).then(pl.lit("Barolo")).otherwise(pl.lit("Grignolino"))
    labels = Rule(name="strong", expression=strong).predict(frame, WINE.task_for(frame)).labels
    assert set(labels) == {"Barolo", "Grignolino"}
    number = Rule(name="13", expression=pl.col("hue") * 0 + 13.0)
    assert (number.predict(frame, ALCOHOL.task_for(frame)).numbers == 13).all()
    with pytest.raises(ObjectiveError, match="expected Barbera or Barolo or Grignolino"):
        number.predict(frame, WINE.task_for(frame))


def test_every_task_is_explored():
    classes = explore(wine(), WINE)
    assert classes.rate is None and "3 labels" in classes.summary
    shares = classes.shown["flavanoids"].select("Barbera", "Barolo", "Grignolino")
    assert np.allclose(shares.sum_horizontal(), 1)
    numbers = explore(wine(), ALCOHOL)
    assert numbers.shown["proline"]["mean"].is_between(11, 15).all()
    assert all("<svg" in e._repr_html_() or "<img" in e._repr_html_() for e in (classes, numbers))


def test_hypotheses_about_several_labels_and_about_numbers():
    strong = Hypothesis(
        name="strong",
        statement="Barolo is strong.",
        column="alcohol",
        label="Barolo",
        expect="more",
    )
    hue = Hypothesis(name="hue", statement="The grape shows.", column="hue")
    verdicts = check_hypotheses(wine(), [strong, hue], WINE)
    assert (verdicts["strong"], verdicts["hue"]) == ("supported", "supported")
    colour = Hypothesis(
        name="colour", statement="Strong is dark.", column="color_intensity", expect="more"
    )
    kind = Hypothesis(name="kind", statement="The grape matters.", column="kind")
    verdicts = check_hypotheses(wine(), [colour, kind], ALCOHOL)
    assert (verdicts["colour"], verdicts["kind"]) == ("supported", "supported")


def test_a_direction_needs_one_label():
    belief = Hypothesis(name="h", statement="?", column="alcohol", expect="more")
    with pytest.raises(ObjectiveError, match="Name the one that you mean: label="):
        check_hypotheses(wine(), [belief], WINE)
    belief = Hypothesis(name="h", statement="?", column="hue", label="Merlot")
    with pytest.raises(ObjectiveError, match="expected Barbera or Barolo or Grignolino"):
        check_hypotheses(wine(), [belief], WINE)
    with pytest.raises(ObjectiveError, match="no label in a regression"):
        check_hypotheses(wine(), [belief], ALCOHOL)


def test_a_model_of_any_task_is_warranted_or_not():
    guess = pl.when(pl.col("alcohol") > 13).then(pl.lit("Barolo")).otherwise(pl.lit("Grignolino"))
    classes = WINE.warrant(wine(), Rule(name="strong", expression=guess))
    assert classes.warranted and classes.metric == "accuracy"
    mean = Rule(name="13", expression=pl.col("hue") * 0 + 13.0)
    numbers = ALCOHOL.warrant(wine(), mean)
    assert numbers.warranted and numbers.metric == "rmse" and 0 < numbers.min_gain < 0.02
    known = Rule(name="the answer", expression="alcohol")
    assert not ALCOHOL.warrant(wine(), known).warranted
