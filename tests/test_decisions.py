"What `init` decides about a table: roles, leaks, questions; what it refuses, and with which flag."

import random
import shlex

import polars as pl
import pytest

from mlops_nb.front.starter.decisions import Decisions, decide_about
from mlops_nb.front.starter.hints import event_label, name_words, unit_of
from mlops_nb.front.starter.plan import Choices, InitError
from mlops_nb.front.starter.tables import look


def orders(rows: int = 400, **columns) -> pl.DataFrame:
    "Return orders of a shop, of which a quarter is returned; further columns by name."
    random.seed(rows)
    base = {
        "order_id": [f"A{i:05}" for i in range(rows)],
        "amount": [round(random.uniform(5, 300), 2) for _ in range(rows)],
        "channel": [random.choice(["shop", "web"]) for _ in range(rows)],
        "returned": ["yes" if i % 4 == 0 else "no" for i in range(rows)],
    }
    return pl.DataFrame(base | columns)


@pytest.fixture
def decided(tmp_path):
    "Return a function from a table and flags to the decisions."

    def decided(table: pl.DataFrame, **choices) -> Decisions:
        table.write_csv(tmp_path / "orders.csv")
        looked = look("orders.csv", root=tmp_path)
        return decide_about(looked, Choices(source="orders.csv", **choices))

    return decided


def refusal(decided, table, **choices) -> str:
    with pytest.raises(InitError) as error:
        decided(table, **choices)
    return str(error.value)


def test_a_plain_table_needs_no_answer(decided):
    plain = decided(orders())
    roles = plain.roles
    assert (roles.target, roles.positive, roles.task) == ("returned", "yes", "binary")
    assert (roles.metric, roles.key, roles.group, roles.time) == ("roc_auc", "order_id", None, None)
    assert plain.questions == () and plain.approval == "rule" and roles.ignore == {}
    assert not plain.contract.columns["returned"].nullable and plain.contract.key == "order_id"


def test_every_column_has_one_finding_and_a_flag(decided):
    table = orders(country=["ES"] * 400, age=[20 + i % 50 for i in range(400)])
    findings = {finding.column: finding for finding in decided(table).findings}
    assert list(findings) == table.columns
    assert findings["country"].role == "ignored" and "same value" in findings["country"].because
    assert findings["age"].role == "feature, protected"
    assert shlex.split(findings["amount"].override) == ["--ignore", "amount"]


@pytest.mark.parametrize("spoiled", [1, 0.999])
def test_a_leak_is_left_out_and_a_person_approves(spoiled, decided):
    random.seed(3)
    late = [
        float((i % 4 == 0) == (random.random() < spoiled)) + random.random() / 9
        for i in range(4000)
    ]
    result = decided(orders(4000, refund=late))
    assert set(result.roles.ignore) == {"refund"} and result.approval == "person"
    assert any("refund" in sentence for sentence in result.warnings)
    kept = decided(orders(4000, refund=late), keep=("refund",))
    assert kept.roles.trusted == {"refund": "you said so"} and kept.roles.ignore == {}
    assert kept.approval == "person"
    assert decided(orders(4000, refund=late), approval="rule").approval == "rule"


def test_a_late_name_is_asked_and_left_out_unless_a_person_keeps_it(decided):
    table = orders(paid_at_once=[i % 3 for i in range(400)])
    (question,) = decided(table).questions
    assert question.column == "paid_at_once" and "Is it known when you predict?" in question.text
    flags = [shlex.split(answer.flag) for answer in question.answers]
    assert flags == [["--ignore", "paid_at_once"], ["--keep", "paid_at_once"]]
    assert "paid_at_once" in decided(table).roles.ignore
    kept = decided(table, keep=("paid_at_once",))
    assert kept.questions == () and "paid_at_once" in kept.roles.trusted
    left_out = decided(table, ignore=("paid_at_once",))
    assert left_out.questions == () and "written after" in left_out.roles.ignore["paid_at_once"]


def test_a_person_leaves_a_column_out(decided):
    assert decided(orders(), ignore=("amount",)).roles.ignore == {"amount": "you left it out"}
    assert "did you mean 'amount'" in refusal(decided, orders(), ignore=("amonut",))
    assert "keep" in refusal(decided, orders(), ignore=("amount",), keep=("amount",))


def test_rows_of_one_customer_stay_together(decided):
    customers = [f"C{i % 80:03}" for i in range(400)]
    assert decided(orders(customer=customers)).roles.group == "customer"
    assert decided(orders(customer=customers), group="none").roles.group is None
    assert decided(orders(subject_line=customers)).roles.group is None


def test_a_named_time_splits_forward_and_an_inferred_one_does_not(decided):
    random.seed(4)
    days = [f"2024-0{random.randint(1, 9)}-{random.randint(10, 28)}" for _ in range(400)]
    inferred, named = decided(orders(day=days)).roles, decided(orders(day=days), time="day").roles
    assert (inferred.time, inferred.forward) == ("day", False)
    assert (named.time, named.forward) == ("day", True)
    assert decided(orders(day=days), time="none").roles.time is None
    table = orders(day=days, customer=[f"C{i % 80:03}" for i in range(400)])
    assert "--group none" in refusal(decided, table, time="day")


def test_few_positives_are_judged_by_average_precision(decided):
    rare = ["yes" if i % 25 == 0 else "no" for i in range(1000)]
    assert decided(orders(1000, returned=rare)).roles.metric == "average_precision"


def test_few_whole_numbers_are_a_question(decided):
    table = orders(stars=[1 + i % 5 for i in range(400)])
    (question,) = decided(table, target="stars").questions
    assert [answer.flag for answer in question.answers] == [
        "--task multiclass",
        "--task regression",
    ]
    assert decided(table, target="stars", task="regression").questions == ()
    assert decided(table, target="stars", task="regression").roles.metric == "mae"


def test_rows_without_a_target_are_announced_and_fit_the_contract(decided):
    labels = ["yes" if i % 4 == 0 else "no" if i % 4 == 1 else None for i in range(400)]
    result = decided(orders(returned=labels))
    assert any("200 rows have no 'returned'" in sentence for sentence in result.warnings)
    assert result.contract.max_rejected > 0.5


def test_two_readings_of_a_date_are_asked(decided):
    random.seed(5)
    days = [f"{random.randint(1, 12):02}/{random.randint(1, 12):02}/2024" for _ in range(400)]
    (question,) = decided(orders(ordered=days)).questions
    flags = [shlex.split(answer.flag) for answer in question.answers]
    assert {flag[0] for flag in flags} == {"--source"}
    assert {flag[1].rpartition("=")[2] for flag in flags} == {"%d/%m/%Y", "%m/%d/%Y"}


@pytest.mark.parametrize(
    "table, choices, words",
    [
        (orders(40), {}, "expected at least 50 rows"),
        (orders(returned=["no"] * 400), {"target": "returned"}, "the same value in every row"),
        (orders(returned=["no"] * 391 + ["yes"] * 9), {}, "'yes' has 9 rows"),
        (orders(), {"target": "order_id"}, "another value in every row"),
        (orders(), {"target": "retuned"}, "did you mean 'returned'?"),
        (orders(), {"target": "Returned"}, "did you mean 'returned'?"),
        (orders(), {"task": "regression"}, "not a number"),
        (orders(), {"target": "amount", "task": "binary"}, "not two"),
        (orders(), {"positive": "maybe"}, "expected no or yes"),
        (orders(), {"target": "amount", "positive": "yes"}, "--positive yes"),
        (orders(), {"key": "channel"}, "400 rows share their value with another row, such as"),
        (orders(), {"key": "channel"}, "--key none"),
        (orders(), {"time": "amount"}, "expected dates or times, got float"),
        (orders(), {"group": "returned"}, "cannot be target and group"),
        (orders(), {"ignore": ("amount", "channel")}, "no column is left to learn from"),
    ],
)
def test_what_cannot_become_a_workspace_is_refused_in_one_sentence(table, choices, words, decided):
    message = refusal(decided, table, **choices)
    assert words in message and "\n" not in message


def test_a_tie_shows_both_columns(decided):
    table = orders(cancelled=["no", "yes"] * 200)
    message = refusal(decided, table)
    assert "--target returned" in message and "--target cancelled" in message


def test_the_same_table_and_flags_give_the_same_decisions(decided):
    assert decided(orders()) == decided(orders())


@pytest.mark.parametrize(
    "name, words",
    [
        ("MaritalStatus", ("marital", "status")),
        ("Days.Past_Due", ("days", "past", "due")),
        ("x2", ("x", "2")),
        ("größe cm", ("größe", "cm")),
        ("", ()),
    ],
)
def test_words_of_a_name(name, words):
    assert name_words(name) == words


def test_units_and_events():
    assert [unit_of(n) for n in ("a (m²)", "b_kg", "kg", "c [€]", "")] == ["m²", "kg", "", "€", ""]
    assert event_label({"0": 10, "1": 90}) == "1" and event_label({"a": 9, "b": 3}) == "b"


def test_a_second_identifier_is_no_feature(decided):
    rows = 400
    table = orders(
        invoice_id=[f"I{i:05}" for i in range(rows)],
        ticket_id=[i * 7 % 303 for i in range(rows)],
        store_id=[i % 3 for i in range(rows)],
    )
    roles = decided(table, group="none").roles
    assert roles.key == "order_id" and set(roles.ignore) == {"invoice_id", "ticket_id"}
    assert "invoice_id" in decided(table, keep=("invoice_id",)).roles.trusted


def test_persons_with_few_repeated_rows_are_a_group(decided):
    table = orders(patient_id=[i % 390 for i in range(400)])
    assert decided(table).roles.group == "patient_id"


def test_a_number_of_years_at_school_is_no_group(decided):
    assert decided(orders(school=[i % 18 for i in range(400)])).roles.group is None


@pytest.mark.parametrize(
    "labels, positive",
    [((0.0, 1.0), "1"), ((1, 2), "2"), (("no", "churner"), "churner"), (("yes", "no"), "yes")],
)
def test_the_event_is_the_label_that_a_word_names_or_the_rarer_one(decided, labels, positive):
    usual, other = labels
    table = orders(400).with_columns(returned=pl.Series([usual] * 220 + [other] * 180).shuffle(1))
    outcome = decided(table)
    assert outcome.roles.positive == positive
    reason = next(f.because for f in outcome.findings if f.role == "target")
    assert f"{positive!r} is to be found" in reason


def test_labels_that_differ_in_capitals_or_spaces_are_refused(decided):
    table = orders().with_columns(
        returned=pl.Series(["yes", "Yes", "no", "no "] * 100), note=pl.lit("x")
    )
    assert "'no' and 'no '" in refusal(decided, table, target="returned")
    assert decided(table, target="returned", task="multiclass").roles.task == "multiclass"


def test_rare_whole_numbers_are_amounts(decided):
    table = orders().with_columns(rating=pl.Series([1, 2, 3, 4] * 99 + [9] * 4))
    outcome = decided(table, target="rating")
    assert outcome.roles.task == "regression" and outcome.questions == ()


def test_a_label_that_was_read_as_no_value_is_named(decided):
    table = orders().with_columns(returned=pl.Series(["NA", "no"] * 200))
    problem = refusal(decided, table, target="returned")
    assert "'NA' (200 rows)" in problem and "null_values=" in problem


def test_refusals_about_columns_stay_short(decided):
    wide = orders().drop("returned").with_columns(*(pl.lit(i).alias(f"c{i}") for i in range(90)))
    wide = wide.with_columns(pl.int_range(400).mod(i + 3).alias(f"d{i}") for i in range(90))
    assert len(refusal(decided, wide)) < 300
    assert len(refusal(decided, wide, target="qqqq")) < 300


def test_a_target_that_was_guessed_may_be_another(decided):
    table = orders().with_columns(returned=pl.Series(["no"] * 396 + ["yes"] * 4))
    assert "another column with --target" in refusal(decided, table)
    assert "another column" not in refusal(decided, table, target="returned")


@pytest.mark.parametrize("option", ["ignore", "keep"])
def test_the_target_is_no_feature_to_ignore_or_keep(decided, option):
    assert "it is the target" in refusal(decided, orders(), **{option: ("returned",)})


def test_a_table_with_a_target_alone_is_refused(decided):
    problem = refusal(decided, orders().select("returned"))
    assert "expected one beside the target" in problem
