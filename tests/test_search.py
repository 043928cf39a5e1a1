"Signature, features, pipeline, folds and search: any row, leaks, refusals, a search on Ray."

import hashlib
import json
import linecache
import os
import re
import signal
import sys
import threading
import time
from datetime import UTC, date, datetime
from uuid import uuid4

import numpy as np
import polars as pl
import pytest
import skops.io
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from mlops_nb.core.errors import InputError, ObjectiveError, TrainingError
from mlops_nb.core.settings import create
from mlops_nb.data.splits import Splitting
from mlops_nb.data.versions import DatasetVersion
from mlops_nb.science import search as searching
from mlops_nb.science.candidates import Candidate
from mlops_nb.science.evaluation import evaluate
from mlops_nb.science.features import check_row_by_row
from mlops_nb.science.json_rows import InputColumn
from mlops_nb.science.model_files import load_pipeline
from mlops_nb.science.objective import Objective
from mlops_nb.science.pipeline import dotted_name, fit, load_candidate_files, save_candidate
from mlops_nb.science.search import fold_scores, search, trial_folds
from mlops_nb.science.signature import Signature
from mlops_nb.service.serving.documentation import docs_page

OBJECTIVE = Objective(name="m", question="?", target="y", positive="Yes", key="id")
LOGISTIC = Candidate("logistic", LogisticRegression())


def table(n: int = 300, seed: int = 0) -> pl.DataFrame:
    "Rows whose label depends on a number and a string."
    random = np.random.default_rng(seed)
    x, c = random.normal(size=n), random.choice(["a", "b", "c"], n)
    y = np.where(x + (c == "a") + random.normal(size=n) > 0.5, "Yes", "No")
    return pl.DataFrame(
        {
            "id": [f"k{i}" for i in range(n)],
            "x": x,
            "n": random.integers(0, 9, n).astype(np.int32),
            "flag": x > 1,
            "c": c,
            "y": y,
        }
    ).with_columns(maybe=pl.when(pl.col("n") > 7).then(None).otherwise(pl.col("x")))


ALL = Signature(
    columns=(
        InputColumn(name="i", dtype="integer"),
        InputColumn(name="f", dtype="float", nullable=True),
        InputColumn(name="b", dtype="boolean"),
        InputColumn(name="s", dtype="string", nullable=True),
        InputColumn(name="d", dtype="date", nullable=True),
        InputColumn(name="t", dtype="datetime", nullable=True),
    ),
    ignored=("id",),
)
GOOD = {"i": 1, "f": 2.5, "b": True, "s": "x", "d": "2026-01-31", "t": "2026-01-31T12:00:00Z"}

ROWS = st.fixed_dictionaries(
    {"i": st.integers(-(2**63), 2**63 - 1), "b": st.booleans()},
    optional={
        "f": st.none() | st.floats(allow_nan=False) | st.integers(-(2**53), 2**53),
        "s": st.none() | st.text(st.characters(codec="utf-8")),
        "d": st.none() | st.dates().map(str),
        "t": st.none() | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
        "id": st.integers(),
    },
)


@hypothesis(deadline=None)
@given(st.lists(ROWS, max_size=8))
def test_good_rows_become_exactly_the_schema(rows):
    frame = ALL.frame(json.loads(json.dumps(rows)))
    assert frame.schema == ALL.schema()
    for got, row in zip(frame.to_dicts(), rows, strict=True):
        assert (got["i"], got["b"], got["s"], got["f"]) == (
            row["i"],
            row["b"],
            row.get("s"),
            row.get("f"),
        )
        assert got["d"] == (row.get("d") and date.fromisoformat(row["d"]))
        assert got["t"] == (row.get("t") and datetime.fromisoformat(row["t"]))


JSON = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


@hypothesis(deadline=None)
@given(st.sampled_from(sorted(GOOD)), JSON, st.integers(0, 3))
def test_a_cell_is_refused_exactly_if_its_column_does_not_accept_it(name, value, at):
    column = next(c for c in ALL.columns if c.name == name)
    rows = [GOOD] * at + [GOOD | {name: value}] + [GOOD]
    if column.accepts(value):
        assert ALL.frame(rows).height == len(rows)
    else:
        with pytest.raises(InputError) as e:
            ALL.frame(rows)
        assert (e.value.row, e.value.column, e.value.expected) == (at, name, column.expected)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"i": 1}, "row 1, column 'b': expected true or false, got no value"),
        ([1], "row 1: expected an object with a value a column, got \\[1\\]"),
        (None, "row 1: expected an object"),
        (GOOD | {"i": "7"}, 'expected an integer of 64 bits, got "7"'),
        (GOOD | {"i": 2**63}, "expected an integer of 64 bits"),
        (GOOD | {"F": 1}, "column 'F'.*got an unknown column"),
        (GOOD | {"iid": 1}, "column 'iid': expected 'i'|column 'iid'"),
        (GOOD | {"d": "31.01.2026"}, "column 'd': expected a date such as 2026-01-31 or null"),
        (GOOD | {"t": "noon"}, "column 't': expected a time"),
        (GOOD | {"s": "x" * 500} | {"b": 1}, "column 'b': expected true or false, got 1"),
        (GOOD | {"s": "\ud800"}, "column 's'"),
    ],
)
def test_the_error_names_the_culprit(row, says):
    with pytest.raises(InputError, match=says):
        ALL.frame([GOOD, row])


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3.0, 3),
        (-0.0, 0),
        (1e3, 1000),
        (2.0**53 - 1, 2**53 - 1),
        (-(2.0**53) + 1, 1 - 2**53),
        (2**53 + 1, 2**53 + 1),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_a_whole_number_written_as_a_float_is_an_integer(value, number):
    rows = [
        GOOD,
        GOOD | {"i": value},
        {k: v for k, v in GOOD.items() if k not in "fsdt"} | {"i": value},
    ]
    assert ALL.columns[0].accepts(value)
    assert ALL.frame(json.loads(json.dumps(rows)))["i"].to_list() == [1, number, number]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"i": 3.5}, "row 1, column 'i': expected an integer of 64 bits, got 3.5"),
        ({"i": True}, "column 'i': expected an integer of 64 bits, got true"),
        ({"i": "3.0"}, 'got "3.0"'),
        (
            {"i": 2.0**53},
            "got 9007199254740992.0, a float too large to stand for one integer: send it without",
        ),
        ({"i": 1e300}, "a float too large"),
        ({"i": float("inf")}, "column 'i'"),
        ({"i": float("nan")}, "column 'i'"),
        (
            {"f": 2**53 + 1},
            "column 'f': expected a number or null, got 9007199254740993, "
            "an integer that no float holds",
        ),
        ({"f": 10**400}, "an integer that no float holds"),
        ({"b": 1.0}, "column 'b': expected true or false, got 1.0"),
    ],
)
def test_what_would_be_rounded_or_is_of_another_kind_is_refused(row, says):
    with pytest.raises(InputError, match=re.escape(says)):
        ALL.frame([GOOD, GOOD | row])


def test_integers_that_a_float_holds_are_numbers():
    values = [2**53, -(2**53), 2**60, 2**53 + 2]
    assert ALL.frame([GOOD | {"f": v} for v in values])["f"].to_list() == [float(v) for v in values]


COUNTS = Signature(
    columns=(
        InputColumn(name="n", dtype="integer", nullable=True),
        InputColumn(name="x", dtype="float"),
    )
)


@pytest.mark.parametrize(
    ("n", "numbers"),
    [
        (pl.Series([3.0, None, -2.0]), [3, None, -2]),
        (pl.Series([3.0, float("nan"), 0.0]), [3, None, 0]),
        (pl.Series([3, 4, 5], dtype=pl.UInt64), [3, 4, 5]),
        (pl.Series([3, 4, None]).cast(pl.Decimal(10, 2)), [3, 4, None]),
    ],
)
def test_a_frame_may_have_whole_numbers_as_floats(n, numbers):
    frame = pl.DataFrame({"x": [1, 2, 3]}).with_columns(n=n)
    assert COUNTS.conform(frame).to_dict(as_series=False) == {"n": numbers, "x": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"n": [1.0, 2.5]},
            "row 1, column 'n': expected an integer of 64 bits or null, got dtype Float64 with 2.5",
        ),
        ({"n": [1.0, 2.0**53]}, "row 1, column 'n'"),
        ({"n": [1.0, float("inf")]}, "row 1, column 'n'"),
        ({"n": pl.Series([1, 2**64 - 1], dtype=pl.UInt64)}, "row 1, column 'n'"),
        ({"n": [True, False]}, "got dtype Boolean"),
        (
            {"n": [1, 2], "x": [1, 2**53 + 1]},
            "row 1, column 'x': expected a number, got dtype Int64 with 9007199254740993",
        ),
    ],
)
def test_a_frame_is_not_rounded_either(columns, says):
    with pytest.raises(InputError, match=re.escape(says)):
        COUNTS.conform(pl.DataFrame({"x": [0.5, 1.5]} | columns))


def test_times_of_several_forms_in_one_request():
    rows = [
        GOOD | {"t": t}
        for t in (
            "2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00.5Z",
            "2026-01-31T14:00:00+02:00",
            "2026-01-31 12:00:00",
            None,
        )
    ]
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert ALL.frame(rows)["t"].to_list() == [
        noon,
        noon.replace(microsecond=500_000),
        noon,
        noon,
        None,
    ]


def test_a_signature_of_one_column_and_of_no_rows():
    one = Signature(columns=(InputColumn(name="i", dtype="integer"),))
    assert one.frame([{"i": 3}])["i"].to_list() == [3] and one.frame([]).schema == one.schema()
    with pytest.raises(InputError):
        one.frame([{}])


def test_narrow_types_are_widened_and_wrong_ones_refused():
    frame = pl.DataFrame(
        {
            "a": pl.Series([1], dtype=pl.Int8),
            "b": pl.Series(["x"], dtype=pl.Categorical),
            "c": pl.Series([1.5], dtype=pl.Float32),
        }
    )
    signature = Signature.of(frame)
    assert (
        signature.conform(frame).schema
        == signature.schema()
        == {"a": pl.Int64, "b": pl.String, "c": pl.Float64}
    )
    with pytest.raises(
        InputError, match="column 'a': expected an integer of 64 bits, got dtype Float64"
    ):
        signature.conform(frame.with_columns(a=1.5))
    with pytest.raises(InputError, match="column 'c'.*no such column"):
        signature.conform(frame.drop("c"))
    with pytest.raises(InputError, match="dtype List"):
        Signature.of(pl.DataFrame({"l": [[1]]}))


def test_bookkeeping_key_and_target_are_no_inputs_but_may_be_sent():
    frame = table().with_columns(_split=pl.lit("train"))
    signature = Signature.of(frame, ignored=("id", "y"))
    assert [c.name for c in signature.columns] == ["x", "n", "flag", "c", "maybe"]
    assert signature.frame(frame.to_dicts()).equals(signature.conform(frame))


def test_digest_depends_on_the_contract_only():
    assert Signature.of(table(seed=1)).digest != Signature.of(table().drop("n")).digest
    frame = table().drop("id")
    assert Signature.of(frame).digest == Signature.of(frame.reverse()).digest


# fitting


def test_unseen_categories_nulls_and_missing_columns_are_predicted():
    fitted = fit(table(), OBJECTIVE, LOGISTIC)
    frame = fitted.signature.frame([{"x": 1, "n": 2, "flag": True, "c": "never seen"}])
    assert 0 < fitted.probability(frame)[0] < 1
    assert (
        0
        < fitted.probability(
            frame.with_columns(c=pl.lit(None, pl.String), x=pl.lit(None, pl.Float64))
        )[0]
        < 1
    )


def test_same_seed_same_model_other_seed_other_forest():
    forest = Candidate("forest", RandomForestClassifier(n_estimators=5))
    a, b, c = (fit(table(), OBJECTIVE, forest, seed=s).probability(table(50, 9)) for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_the_positive_label_is_the_objectives():
    flipped = Objective(**OBJECTIVE.model_dump() | {"positive": "No"})
    yes, no = fit(table(), OBJECTIVE, LOGISTIC), fit(table(), flipped, LOGISTIC)
    assert np.allclose(yes.probability(table()), 1 - no.probability(table()), atol=1e-3)
    assert (yes.labels, no.labels) == (("No", "Yes"), ("Yes", "No"))


def test_a_target_of_three_labels_is_refused():
    with pytest.raises(ObjectiveError, match="one other label"):
        fit(table().with_columns(y=pl.Series(["Yes", "No", "Maybe"] * 100)), OBJECTIVE, LOGISTIC)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Candidate("a b", LogisticRegression()), "letters, digits"),
        (lambda: Candidate("svc", LinearSVC()), "gives no probabilities"),
        (lambda: Candidate("l", LogisticRegression(), {"depth": 1}), "no parameter depth"),
        (lambda: dotted_name("nowhere.features", "ws"), "expected one of package 'ws'"),
        (
            lambda: fit(table(), OBJECTIVE, LOGISTIC, features="nowhere.features"),
            "cannot be imported",
        ),
        (lambda: dotted_name(lambda frame: frame), "has no name of its own: expected a function"),
        (
            lambda: fit(table().select("id", "y"), OBJECTIVE, LOGISTIC),
            "no column is left to learn from",
        ),
        (lambda: trial_folds(table(), OBJECTIVE, 1), "folds=1: expected 2 to"),
    ],
)
def test_refused_with_a_reason(make, says):
    with pytest.raises(TrainingError, match=says):
        make()


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A workspace package `wspkg` with a feature function."
    (tmp_path / "wspkg").mkdir()
    (tmp_path / "wspkg/__init__.py").write_text("")
    (tmp_path / "wspkg/features.py").write_text(
        "import polars as pl\n"
        "def doubled(frame):\n"
        "    return frame.with_columns(double=pl.col('x') * 2, text=pl.col('c') + '!')\n"
        "def broken(frame): return frame.with_columns(z=pl.col('nope'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [m for m in sys.modules if m.split(".")[0] == "wspkg"]:
        del sys.modules[name]


def test_features_travel_by_name(package, tmp_path):
    from wspkg.features import doubled

    fitted = fit(table(), OBJECTIVE, LOGISTIC, features=doubled)
    assert fitted.features == "wspkg.features.doubled"
    assert "double" in dict(c[::2] for c in fitted.pipeline["columns"].transformers)["number"]
    again = load_candidate_files(save_candidate(fitted, tmp_path / "kept"), package="wspkg")
    assert (again.probability(table()) == fitted.probability(table())).all()
    with pytest.raises(TrainingError, match="names wspkg.features.doubled"):
        load_candidate_files(tmp_path / "kept", package="other")


def test_features_that_fail_are_named(package):
    with pytest.raises(
        TrainingError, match="broken fails on a frame without rows: ColumnNotFoundError"
    ):
        fit(table(), OBJECTIVE, LOGISTIC, features="wspkg.features.broken")


CELLS = [
    "#| default_exp made",
    "import polars as pl",
    """#| export
FACTORS = [2, 3]
LEVELS = {"a", "b", "c"}

def scaled(x, by=1.0): return x * by

def features(frame):
    "What the model sees."
    known = pl.col("c").is_in(list(LEVELS) if FACTORS else {"d", "e", "f"})
    return frame.with_columns(known, *(scaled(pl.col("x")).alias(f"x{f}") for f in FACTORS))
""",
]
EXPORTED = "\n\n".join(CELLS[1:])


def in_a_notebook(*cells: str) -> dict:
    "Return what the cells of a notebook define in its kernel."
    scope = {"__name__": "__main__", "In": ["", *cells]}
    for number, cell in enumerate(cells):
        file = f"<cell {number} of {uuid4()}>"
        linecache.cache[file] = len(cell), None, cell.splitlines(True), file  # as IPython does
        exec(compile(cell, file, "exec"), scope)
    return scope


def test_a_function_of_the_notebook_stands_for_the_exported_one(package):
    (package / "wspkg/made.py").write_text(EXPORTED)
    (package / "wspkg/copied.py").write_text(EXPORTED)
    assert dotted_name(in_a_notebook(*CELLS)["features"], "wspkg") == "wspkg.made.features"
    other_layout = (
        CELLS[2]
        .replace("    return", "    # all at once\n\n    return")
        .replace("[2, 3]", "[2,\n 3]")
    )
    function = in_a_notebook(*CELLS[:2], other_layout)["features"]
    assert dotted_name(function, "wspkg") == "wspkg.made.features"
    assert (
        fit(table(), OBJECTIVE, LOGISTIC, features="wspkg.made.features").features
        == "wspkg.made.features"
    )


def test_a_kernel_that_imported_the_module_before_an_export_is_refused(package):
    (package / "wspkg/made.py").write_text(
        EXPORTED.replace("[2, 3]", "[2, 4]").replace("x * by", "x + by")
    )
    import wspkg.made  # noqa: F401

    for before, after in (("[2, 4]", "[2, 3]"), ("x + by", "x * by")):
        (package / "wspkg/made.py").write_text(EXPORTED)
        function = in_a_notebook(*CELLS[:2], CELLS[2].replace(after, before))["features"]
        with pytest.raises(TrainingError, match="restart the kernel"):
            dotted_name(function, "wspkg")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("alias(f\"x{f}\")", "alias(f\"y{f}\")"),
        ("[2, 3]", "[2, 4]"),
        ("x * by", "x + by"),
        ("by=1.0", "by=1"),
        ('"d", "e"', '"d", "g"'),
        ('{"a", "b"', '{"a", "z"'),
        ("def features(frame)", "def features(frame, more=None)"),
    ],
)
def test_a_function_that_was_edited_since_its_export_is_refused(package, before, after):
    (package / "wspkg/made.py").write_text(EXPORTED)
    assert before in CELLS[2]
    function = in_a_notebook(*CELLS[:2], CELLS[2].replace(before, after))["features"]
    with pytest.raises(
        TrainingError, match="features is not the one in wspkg.made: run `nbdev-export`"
    ):
        dotted_name(function, "wspkg")


HELP = """import datetime as dt
import functools, re
import polars as pl

def by(factor):
    def decorate(function):
        @functools.wraps(function)
        def inner(frame): return function(frame) * factor
        return inner
    return decorate
"""


@pytest.mark.parametrize(
    ("definitions", "before", "after"),
    [
        ("K = dt.date(2020, 1, 1)\ndef features(frame): return frame, K", "2020", "2021"),
        ("K = pl.col('x') * 2\ndef features(frame): return frame.with_columns(K)", "* 2", "* 3"),
        ("K = re.compile('a')\ndef features(frame): return K, frame", "'a'", "'b'"),
        ("K = 2\n@by(1)\ndef features(frame): return frame * K", "K = 2", "K = 3"),
        ("@by(2)\ndef features(frame): return frame", "by(2)", "by(3)"),
        ("@by(2)\ndef features(frame): return frame", "@by(2)\n", ""),
        ("half = by(2)\n@half\ndef features(frame): return frame", "by(2)", "by(4)"),
        ("double = lambda x: x * 2\ndef features(frame): return double(frame)", "x * 2", "x * 3"),
        (
            "class C:\n    def go(self, x): return x * 2\n"
            "def features(frame): return C().go(frame)",
            "x * 2",
            "x * 3",
        ),
        ("class C:\n    factor = 2\ndef features(frame): return frame * C.factor", "= 2", "= 3"),
        (
            "def g(x, n): return x * n\nh = functools.partial(g, n=2)\n"
            "def features(frame): return h(frame)",
            "n=2",
            "n=3",
        ),
        ("from math import ceil as r\ndef features(frame): return r(frame)", "ceil", "floor"),
    ],
)
def test_what_a_function_uses_is_compared_too(package, definitions, before, after):
    (package / "wspkg/used.py").write_text(HELP + definitions)
    assert before in definitions
    function = in_a_notebook("#| default_exp used", HELP, definitions)["features"]
    assert dotted_name(function, "wspkg") == "wspkg.used.features"
    edited = in_a_notebook("#| default_exp used", HELP, definitions.replace(before, after, 1))[
        "features"
    ]
    with pytest.raises(
        TrainingError, match="not the one in wspkg.used.*dotted name.*\"wspkg.used.features\""
    ):
        dotted_name(edited, "wspkg")


def test_names_of_attributes_and_of_a_relative_import_do_not_count(package):
    (package / "wspkg/lazy.py").write_text(
        "columns = 1\ndef features(frame):\n    from .features import doubled\n"
        "    return doubled(frame.select(frame.columns))"
    )
    cell = (
        (package / "wspkg/lazy.py")
        .read_text()
        .replace(".features", "wspkg.features")
        .replace("= 1", "= 2")
    )
    assert (
        dotted_name(in_a_notebook("#| default_exp lazy", cell)["features"], "wspkg")
        == "wspkg.lazy.features"
    )


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("features = lambda frame: frame", "<lambda>, which has no name of its own"),
        (
            "def outer():\n    def features(frame): return frame\n"
            "    return features\nfeatures = outer()",
            "outer.<locals>.features, which has no name",
        ),
        (
            "import functools\nfeatures = functools.partial(lambda frame, n: frame, n=1)",
            "features is of type partial: expected",
        ),
        (
            "features = 5",
            "features is of type int: expected a function that a cell or a module defines with def",
        ),
    ],
)
def test_features_without_a_name_are_refused(package, code, says):
    with pytest.raises(TrainingError, match=says):
        dotted_name(in_a_notebook(code)["features"], "wspkg")


def test_a_function_that_is_not_exported_is_refused(package):
    (package / "wspkg/copied.py").write_text(EXPORTED)  # by another notebook
    function = in_a_notebook(*CELLS)["features"]
    with pytest.raises(
        TrainingError, match="is not exported.*package 'wspkg'.*`#| export`, run `nbdev-export`"
    ):
        dotted_name(function, "wspkg")
    with pytest.raises(TrainingError, match=r"exports to no package \(\[workspace\] package"):
        dotted_name(function)


def test_without_the_cell_default_exp_the_package_is_searched(package):
    (package / "wspkg/deeper").mkdir()
    (package / "wspkg/deeper/made.py").write_text(EXPORTED)
    (package / "wspkg/other.py").write_text(EXPORTED.replace("[2, 3]", "[2, 4]"))
    function = in_a_notebook(*CELLS[1:])["features"]
    assert dotted_name(function, "wspkg") == "wspkg.deeper.made.features"
    (package / "wspkg/copied.py").write_text(EXPORTED)
    with pytest.raises(
        TrainingError,
        match="wspkg.copied and wspkg.deeper.made export it.*\"wspkg.copied.features\"",
    ):
        dotted_name(function, "wspkg")


def test_a_kernel_by_hand_finds_the_exported_function(package):
    "As in JupyterLab: a kernel that knows nothing of the notebook's file."
    (package / "wspkg/made.py").write_text(EXPORTED)
    ask = f"from {dotted_name.__module__} import dotted_name\ndotted_name(features, 'wspkg')"
    cells = [f"import sys\nsys.path.insert(0, {str(package)!r})", *CELLS, ask]
    nb = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    NotebookClient(nb, kernel_name="python3", timeout=120).execute()
    assert nb.cells[-1].outputs[0].data["text/plain"] == "'wspkg.made.features'"


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        RandomForestClassifier(n_estimators=3),
        HistGradientBoostingClassifier(max_iter=3),
    ],
)
def test_each_kind_of_estimator_survives_its_file(estimator, tmp_path):
    fitted = fit(table(), OBJECTIVE, Candidate("c", estimator), {"random_state": 3})
    again = load_candidate_files(save_candidate(fitted, tmp_path))
    assert (again.probability(table()) == fitted.probability(table())).all()
    assert (again.params, again.labels, again.signature) == (
        fitted.params,
        fitted.labels,
        fitted.signature,
    )


@pytest.mark.parametrize(
    "evil", [os.system, os.listdir, eval, np.load, json.loads, np.memmap, pl.read_csv]
)
def test_functions_of_elsewhere_are_refused(evil, tmp_path):
    skops.io.dump(make_pipeline(FunctionTransformer(evil)), tmp_path / "model.skops")
    with pytest.raises(TrainingError, match="expected types of scikit-learn"):
        load_pipeline(tmp_path / "model.skops", package="wspkg")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "model.skops").write_bytes(b"no")
    with pytest.raises(TrainingError, match="is not a skops file"):
        load_pipeline(tmp_path / "model.skops")
    with pytest.raises(TrainingError, match="is not a candidate"):
        load_candidate_files(tmp_path)


# features row by row

BAD_FEATURES = {
    "sorts": ("frame.sort('x')", "single row|other order|sample of rows"),
    "centres": ("frame.with_columns(z=pl.col('x') - pl.col('x').mean())", "column 'z' of row"),
    "ranks": ("frame.with_columns(z=pl.col('x').rank())", "column 'z' of row"),
    "counts": ("frame.with_columns(z=pl.len().over('c'))", "column 'z' of row"),
    "shifts": ("frame.with_columns(z=pl.col('x').shift(1))", "column 'z' of row"),
    "numbers": ("frame.with_row_index('z')", "column 'z' of row"),
    "reverses": ("frame.reverse()", "column"),
    "drops": ("frame.drop_nulls()", "makes [0-9]+ rows of 300 in the whole frame"),
    "fills": (
        "frame.with_columns(z=pl.col('maybe').fill_null(strategy='forward'))",
        "column 'z' of row",
    ),
    "imputes": (
        "frame.with_columns(z=pl.col('maybe').fill_null(pl.col('maybe').max()))",
        "column 'z' of row",
    ),
    "pivots": (
        "frame.with_columns(frame['c'].to_dummies()) if frame.height else frame",
        "makes the columns",
    ),
    "guesses": (
        "frame.with_columns(z=pl.lit(1 if frame.height else 1.5))",
        "column 'z' is Int32 in the whole frame",
    ),
    "draws": (
        "frame.with_columns(z=pl.Series(np.random.default_rng(0).normal(size=frame.height)))",
        "column 'z' of row",
    ),
    "fails": (
        "frame.with_columns(z=1 / (frame.height != 1))",
        "fails on a single row: ZeroDivisionError",
    ),
    "lazy": ("frame.lazy() if frame.height else frame", "makes a LazyFrame of the whole frame"),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_features_that_look_at_other_rows_are_refused_before_a_search(tmp_path, monkeypatch, name):
    body, says = BAD_FEATURES[name]
    (tmp_path / "rowpkg.py").write_text(
        f"import numpy as np\nimport polars as pl\ndef {name}(frame): return {body}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(searching, "require_cpu", lambda settings: pytest.fail("the search began"))
    settings = create(tmp_path / "ws", workspace={"package": "rowpkg"})
    try:
        with pytest.raises(
            TrainingError, match=f"function {name} does not work row by row: .*({says})"
        ):
            search(
                table(),
                OBJECTIVE,
                [LOGISTIC],
                trials=1,
                features=f"rowpkg.{name}",
                settings=settings,
            )
        with pytest.raises(TrainingError, match="does not work row by row"):
            fit(table(), OBJECTIVE, LOGISTIC, features=f"rowpkg.{name}")
    finally:
        sys.modules.pop("rowpkg", None)


def test_a_third_label_is_refused_before_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "require_cpu", lambda settings: pytest.fail("the search began"))
    frame = table()
    third = (
        pl.when(pl.int_range(pl.len()) % 10 == 0)
        .then(pl.lit("perhaps"))
        .otherwise(OBJECTIVE.target)
    )
    frame = frame.with_columns(third.alias(OBJECTIVE.target))
    says = "expected 'Yes' and one other label, got 3 [No, Yes, perhaps]"
    with pytest.raises(ObjectiveError, match=re.escape(says)):
        search(frame, OBJECTIVE, [LOGISTIC], trials=1, settings=create(tmp_path / "ws"))


def test_features_of_each_kind_that_work_row_by_row_pass():
    def good(frame):
        return frame.with_columns(
            half=pl.col("x").cast(pl.Float32) / 3,
            nan=pl.col("x").log(),
            none=pl.lit(None, pl.Float64),
            big=pl.col("x").exp() * 1e9,
            sums=pl.sum_horizontal("x", "maybe"),
            word=pl.col("c").cast(pl.Categorical),
            day=pl.date(2026, 1, 1),
            pair=pl.concat_list("x", "n"),
        )

    frame = table(70_000)
    inputs = Signature.of(frame, ignored=("id", "y")).conform(frame)
    began = time.process_time()
    check_row_by_row(good, inputs)
    assert time.process_time() - began < 1  # s of CPU; 0.13 to 0.16 when this was written


def test_a_rare_row_with_a_missing_value_is_tried():
    frame = table(20_000).with_columns(
        rare=pl.when(pl.int_range(pl.len()) == 12_345).then(None).otherwise(1.0)
    )
    broken = lambda f: f.with_columns(z=pl.col("rare").fill_null(pl.col("x").sum()))
    with pytest.raises(TrainingError, match="column 'z' of row 12345 is"):
        check_row_by_row(broken, frame)


# columns that are not used


def with_dates() -> pl.DataFrame:
    return table().with_columns(
        since=pl.date(2020, 1, 1) + pl.duration(days=pl.col("n")),
        seen=pl.lit(datetime(2026, 1, 1, tzinfo=UTC)),
    )


UNDATED = Candidate("logistic", LogisticRegression(), columns={"since": "drop", "seen": "drop"})


def test_a_date_that_the_pipeline_does_not_use_is_not_demanded():
    fitted = fit(with_dates(), OBJECTIVE, UNDATED)
    signature = fitted.signature
    assert {"since", "seen"} & {c.name for c in signature.columns} == set()
    assert set(signature.unused) == {"since", "seen"} and "chosen" in signature.unused["since"]
    row = with_dates().drop("id", "y", "since", "seen").row(0, named=True)
    assert signature.frame([row, row | {"since": "2020-01-05", "seen": None}]).height == 2
    assert "Not used" in signature._repr_html_() and "since" in docs_page("m", signature, [])
    assert Signature.model_validate_json(signature.model_dump_json()) == signature


def test_a_date_that_the_features_use_is_demanded(tmp_path, monkeypatch):
    (tmp_path / "datepkg.py").write_text(
        "import polars as pl\nimport polars.selectors as cs\n"
        "def year(frame): return frame.with_columns(year=pl.col('since').dt.year())\n"
        "def every(frame): return frame.with_columns(cs.date().dt.year().name.suffix('_year'))\n"
        "def some(frame): return frame.select('x', 'c')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    demanded = lambda name: (
        fit(with_dates(), OBJECTIVE, LOGISTIC, features=f"datepkg.{name}").signature
    )
    try:
        assert [*demanded("year").unused] == ["seen"] == [*demanded("every").unused]
        assert [c.name for c in demanded("some").columns] == ["x", "c"]
        assert demanded("some").unused["flag"] == "the feature function leaves it out"
    finally:
        sys.modules.pop("datepkg", None)


def test_a_protected_column_is_demanded_though_the_model_does_not_see_it(tmp_path, monkeypatch):
    (tmp_path / "fairpkg.py").write_text(
        "def blind(frame): return frame.drop('flag', strict=False)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    protecting = OBJECTIVE.model_copy(update={"protected": ("flag",)})
    try:
        blind, fair = (
            fit(table(), o, LOGISTIC, features="fairpkg.blind").signature
            for o in (OBJECTIVE, protecting)
        )
    finally:
        sys.modules.pop("fairpkg", None)
    assert list(blind.unused) == ["flag"] and fair.unused == {}


def test_the_report_names_what_is_not_used():
    fitted = fit(with_dates(), OBJECTIVE, UNDATED)
    report = evaluate(
        with_dates(), fitted.probability(with_dates()), OBJECTIVE, pipeline=fitted.pipeline
    )
    assert (
        set(report.unused) == {"since", "seen"}
        and "<li>since: the pipeline does not use it" in report._repr_html_()
    )
    assert type(report).from_dict(report.to_dict()).unused == report.unused
    assert (
        type(report).from_dict({k: v for k, v in report.to_dict().items() if k != "unused"}).unused
        == {}
    )


def test_the_digest_of_a_signature_is_what_it_was():
    assert (
        ALL.digest
        == hashlib.sha256(
            json.dumps(
                {"columns": ALL.model_dump()["columns"], "ignored": ALL.ignored}, sort_keys=True
            ).encode()
        ).hexdigest()[:16]
    )


# searching


def test_folds_are_the_same_for_every_trial_and_keep_keys_together():
    frame = table().with_columns(id=pl.col("id").str.slice(0, 3))
    parts, again = trial_folds(frame, OBJECTIVE, 3, 1), trial_folds(frame, OBJECTIVE, 3, 1)
    for (learnt, scored), (learnt2, scored2) in zip(parts, again, strict=True):
        assert (learnt == learnt2).all() and (scored == scored2).all()
        assert not set(frame["id"][learnt]) & set(frame["id"][scored])


BY_GROUP = Splitting(salt="s", by="group", column="c")
BY_TIME = Splitting(
    salt="s", by="time", column="day", ends={"train": datetime(2026, 3, 1), "test": None}
)


def dated(n: int = 300) -> pl.DataFrame:
    "Rows in no order of time, several a day."
    days = np.random.default_rng(5).integers(0, 40, n)
    return table(n).with_columns(
        day=pl.Series([date(2026, 1, 1)] * n) + pl.duration(days=pl.Series(days))
    )


def test_folds_keep_groups_together_where_the_split_did():
    frame = table(600).with_columns(c=pl.col("n").cast(pl.String))
    parts = trial_folds(frame, OBJECTIVE, 3, splitting=BY_GROUP)
    assert all(not set(frame["c"][learnt]) & set(frame["c"][scored]) for learnt, scored in parts)
    assert sorted(row for _, scored in parts for row in scored) == list(range(600))


def test_folds_go_forward_in_time_where_the_split_did():
    frame = dated()
    parts = trial_folds(frame, OBJECTIVE, 3, splitting=BY_TIME)
    assert len(parts) == 3
    for learnt, scored in parts:
        first = frame["day"][scored].min()
        assert frame["day"][learnt].max() < first
        assert len(learnt) == (frame["day"] < first).sum()  # all earlier rows


@pytest.mark.parametrize(
    ("splitting", "frame", "says"),
    [
        (BY_TIME, dated().drop("day"), "split by time, with the column 'day'"),
        (BY_TIME, dated().with_columns(day=pl.lit(None, dtype=pl.Date)), "300 rows have no day"),
        (
            BY_TIME,
            dated().with_columns(day=pl.lit(date(2026, 1, 1))),
            "at least 4 different times in 'day', got 1",
        ),
        (BY_GROUP, table().drop("c"), "split by group"),
        (
            BY_TIME,
            dated().sort("y", "day").with_columns(day=pl.int_range(300)),
            "rows of one label only",
        ),
    ],
)
def test_folds_that_cannot_be_say_why(splitting, frame, says):
    with pytest.raises(TrainingError, match=says):
        trial_folds(frame, OBJECTIVE, 3, splitting=splitting)


def test_fewer_groups_than_folds_are_refused_in_words():
    frame = table().with_columns(shop=pl.int_range(pl.len()) % 2)
    by_shop = Splitting(salt="s", by="group", column="shop")
    says = (
        "folds=3: expected at least 3 different values \\(whose rows stay together\\) in 'shop', "
        "got 2. Use fewer folds"
    )
    with pytest.raises(TrainingError, match=says):
        trial_folds(frame, OBJECTIVE, 3, splitting=by_shop)
    assert len(trial_folds(frame, OBJECTIVE, 2, splitting=by_shop)) == 2


def test_rows_without_a_key_are_independent_in_the_folds():
    "As they are in the intervals."
    key = [None] * 240 + [f"k{i // 2}" for i in range(60)]
    parts = trial_folds(table().with_columns(id=pl.Series(key)), OBJECTIVE, 3)
    assert all(80 <= len(scored) <= 120 for _, scored in parts)


def test_a_search_takes_a_version_and_follows_its_split(monkeypatch, tmp_path):
    early = pl.col("day") < date(2026, 2, 1)
    rows = dated().with_columns(
        _split=pl.when(early).then(pl.lit("train")).otherwise(pl.lit("test"))
    )
    settings, seen = create(tmp_path / "ws"), {}
    version = DatasetVersion("d", 1, {"splitting": BY_TIME.model_dump()}, settings)
    monkeypatch.setattr(
        DatasetVersion, "scan", lambda self, split: rows.filter(_split=split).drop("_split").lazy()
    )

    def stop(trainable, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "require_cpu", lambda settings: None)
    monkeypatch.setattr(searching, "run_jobs", stop)
    real = searching.trial_folds
    monkeypatch.setattr(
        searching, "trial_folds", lambda *a, **k: seen.update(k, frame=a[0]) or real(*a, **k)
    )
    with pytest.raises(KeyboardInterrupt):
        search(version, OBJECTIVE, [LOGISTIC], trials=1, settings=settings)
    assert (
        seen["splitting"] == BY_TIME and seen["frame"].height == rows.filter(_split="train").height
    )


def test_scores_learn_nothing_from_the_fold_they_score():
    "A model of noise scores as chance; leaked preprocessing would show."
    frame = (
        table()
        .with_columns(noise=pl.Series(np.random.default_rng(1).normal(size=300)))
        .select("id", "noise", "y")
    )
    assert (
        abs(
            np.mean(
                list(
                    fold_scores(
                        frame, OBJECTIVE, LOGISTIC, {}, parts=trial_folds(frame, OBJECTIVE, 3)
                    )
                )
            )
            - 0.5
        )
        < 0.1
    )


def test_preprocessing_is_learnt_in_each_fold(monkeypatch):
    seen = []
    real = fit
    monkeypatch.setattr(
        searching,
        "fit",
        lambda frame, *a, **k: seen.append(set(frame["id"])) or real(frame, *a, **k),
    )
    frame, parts = table(), trial_folds(table(), OBJECTIVE, 3)
    list(fold_scores(frame, OBJECTIVE, LOGISTIC, {}, parts=parts))
    assert [
        ids & set(frame["id"][scored]) for ids, (_, scored) in zip(seen, parts, strict=True)
    ] == [set()] * 3


@pytest.fixture(scope="module")
def ray(ray_cluster):
    "This process joins the session's cluster, and leaves it afterwards."
    import ray

    yield ray
    ray.shutdown()


def searched_rows() -> pl.DataFrame:
    "300 rows to learn from, and 100 to test on."
    is_train = pl.int_range(pl.len()) < 300
    split = pl.when(is_train).then(pl.lit("train")).otherwise(pl.lit("test"))
    return table(400).with_columns(_split=split)


@pytest.fixture(scope="module")
def workspace_settings(ray, tmp_path_factory):
    "A workspace on the session's cluster."
    return create(tmp_path_factory.mktemp("ws"), workspace={"name": "search"})


def behaving(before_fit) -> LogisticRegression:
    "An estimator that does something before it is fitted; workers get the class by value."

    class Behaving(LogisticRegression):
        def fit(self, x, y):
            before_fit()
            return super().fit(x, y)

    return Behaving()


def outcome(result) -> tuple:
    "What two searches with one seed have in common: all but the time."
    trials = result.trials.drop("seconds").to_dicts()
    return trials, result.best.params, result.best.cv, result.best.digest


@pytest.mark.cluster
def test_a_search_finds_the_better_candidate_and_refits_on_all_of_train(workspace_settings):
    from ray import tune

    space = {"C": tune.loguniform(1e-4, 10), "max_iter": 200}
    candidates = [
        Candidate("logistic", LogisticRegression(), space),
        Candidate("chance", DummyClassifier()),
    ]
    rows = searched_rows()
    first = search(rows, OBJECTIVE, candidates, trials=6, seed=4, settings=workspace_settings)
    assert first.best.name == "logistic" and first.best.params["max_iter"] == 200
    assert set(first.trials["candidate"]) == {"logistic", "chance"} and first.trials.height == 6
    assert (
        first.best.cv["mean"]
        == first.finished["score"][0]
        == pytest.approx(np.mean(first.best.cv["scores"]))
    )
    alone = fit(rows.filter(_split="train"), OBJECTIVE, LOGISTIC, first.best.params, seed=4)
    assert alone.digest == first.best.digest


@pytest.mark.cluster
def test_one_seed_gives_one_table_and_one_model_in_any_order_of_arrival(workspace_settings):
    from ray import tune

    def delay():
        time.sleep(os.urandom(1)[0] / 1000)  # to 0.26 s, other ones in each search

    candidates = [
        Candidate("slow", behaving(delay), {"C": tune.loguniform(1e-4, 10)}),
        Candidate(
            "forest",
            RandomForestClassifier(n_estimators=5, n_jobs=2),
            {"max_depth": tune.randint(1, 8)},
        ),
        Candidate(
            "boosting",
            HistGradientBoostingClassifier(max_iter=5),
            {"learning_rate": tune.loguniform(0.01, 0.5)},
        ),
    ]
    options = {"trials": 12, "generation": 4, "settings": workspace_settings}
    results = [
        search(searched_rows(), OBJECTIVE, candidates, parallel=parallel, seed=3, **options)
        for parallel in (1, 2, 4, 1, 2, 4)
    ]
    first, *others = map(outcome, results)
    assert all(other == first for other in others)
    assert results[0].trials["scores"].list.len().to_list().count(3) == 6
    other_seed = search(searched_rows(), OBJECTIVE, candidates, seed=4, **options)
    assert outcome(other_seed) != first


@pytest.mark.cluster
def test_a_trial_whose_worker_is_killed_begins_again_and_changes_nothing(
    workspace_settings, tmp_path
):
    from ray import tune

    folder = tmp_path

    def die():
        for name in ("first", "second"):
            if not os.path.exists(folder / name):
                os.mkdir(folder / name)
                os.kill(os.getpid(), signal.SIGKILL)

    candidates = [Candidate("mortal", behaving(die), {"C": tune.loguniform(1e-4, 10)})]
    options = {"trials": 4, "folds": 2, "settings": workspace_settings}
    killed = search(searched_rows(), OBJECTIVE, candidates, **options)
    assert (tmp_path / "second").exists() and killed.trials["error"].null_count() == 4
    assert outcome(killed) == outcome(search(searched_rows(), OBJECTIVE, candidates, **options))


@pytest.mark.cluster
def test_a_worker_that_is_killed_each_time_is_an_error(workspace_settings):
    candidate = Candidate("doomed", behaving(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    says = "its process ended 3 times before it had a score.*trial 0 .doomed."
    with pytest.raises(TrainingError, match=says) as e:
        search(table(), OBJECTIVE, [candidate], trials=1, generation=1, settings=workspace_settings)
    assert "died" in str(e.value.__cause__.__cause__)


class OfThisFile(LogisticRegression):
    "Workers cannot import it."


@pytest.mark.cluster
def test_what_workers_cannot_import_is_named(workspace_settings):
    candidate = Candidate("mine", OfThisFile())
    with pytest.raises(TrainingError, match="no worker could begin it: .*'test_search'"):
        search(table(), OBJECTIVE, [candidate], trials=1, generation=1, settings=workspace_settings)


@pytest.mark.cluster
def test_an_interrupted_search_leaves_nothing_running(workspace_settings, tmp_path):
    def run_on():
        for _ in range(600):
            (tmp_path / f"{os.getpid()}").touch()
            time.sleep(0.1)

    def interrupt():
        while not list(tmp_path.iterdir()):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    candidate = Candidate("endless", behaving(run_on))
    handler = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        search(table(), OBJECTIVE, [candidate], trials=4, settings=workspace_settings)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not [pid for pid in os.listdir(tmp_path) if is_running(int(pid))]


def is_running(pid: int) -> bool:
    "Return whether a process is still there after a minute."
    import psutil

    try:
        psutil.Process(pid).wait(60)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        return True
    return False


@pytest.mark.cluster
def test_a_search_in_which_every_trial_fails_stops_and_says_why(workspace_settings):
    bad = Candidate("bad", LogisticRegression(), {"max_iter": -1})
    says = "InvalidParameterError: The 'max_iter' parameter .*none of 3 was scored on every fold"
    with pytest.raises(TrainingError, match=says) as e:
        search(table(), OBJECTIVE, [bad], trials=24, generation=3, settings=workspace_settings)
    assert isinstance(e.value.__cause__, ValueError)
    assert "_validate_params" in e.value.__cause__.__notes__[0]


@pytest.mark.cluster
def test_trials_that_fail_are_in_the_table_and_the_rest_go_on(workspace_settings):
    from ray import tune

    space = {"C": tune.choice([-1.0, 0.5, 1.0])}
    candidates = [Candidate("half", LogisticRegression(), space)]
    result = search(
        table(), OBJECTIVE, candidates, trials=8, generation=4, settings=workspace_settings
    )
    failed = result.trials.filter(pl.col("error").is_not_null())
    assert 0 < failed.height < 8 and result.best.params["C"] > 0
    assert failed["error"].str.contains("'C' parameter").all() and failed["score"].is_null().all()
    assert f"8 trials ({failed.height} failed)" in repr(result)


@pytest.mark.cluster
def test_a_cluster_without_a_cpu_is_refused(ray, monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 0.5}}])
    with pytest.raises(TrainingError, match="no trial can ever be placed.*largest has 0.5"):
        search(table(), OBJECTIVE, [LOGISTIC], trials=1, settings=create(tmp_path / "ws"))


def test_candidates_and_trials_are_checked_before_anything_starts(tmp_path):
    settings = create(tmp_path / "ws")
    for candidates, trials in (([], 3), ([LOGISTIC, LOGISTIC], 3), ([LOGISTIC], 0)):
        with pytest.raises(TrainingError, match="a trial for each"):
            search(table(), OBJECTIVE, candidates, trials=trials, settings=settings)
