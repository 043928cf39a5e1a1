"Ingest: any order, any dirt, any moment of death; what a lesson would not show."

import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_nb.core import data_files, events, lake
from mlops_nb.core.errors import DataError
from mlops_nb.core.settings import create
from mlops_nb.data import contracts, values, versions
from mlops_nb.data import ingest as steps
from mlops_nb.data.contracts import Column, Contract
from mlops_nb.data.inference import infer
from mlops_nb.data.ingest import ingest, plan, read_source
from mlops_nb.data.profiles.profiling import profile
from mlops_nb.data.sources import Source
from mlops_nb.data.sources.partition import Part
from mlops_nb.data.splits import content_digest
from mlops_nb.data.validation import conform, enforce
from mlops_nb.data.versions import quarantine
from mlops_nb.science import features, signature

slow = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def ws(tmp_path):
    return create(tmp_path / "ws")


def put(ws, name, /, **columns):
    path = ws.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_csv(path)
    return name


def rows_of(version):
    return sorted(version.scan().drop("_split").collect().rows())


def files_in(table):
    return {p.name for p in Path(table).glob("*.parquet")} if Path(table).exists() else set()


# --- nothing is lost ------------------------------------------------------------------------------

field = st.one_of(
    st.none(),
    st.integers(-5, 60).map(str),
    st.sampled_from(["x", "1.5", "ten", "12a", "-", "NaN", "é"]),
)


@slow
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "d", "e", ""]), field, field),
        min_size=1,
        max_size=30,
    )
)
def test_accepted_and_rejected_are_all_that_was_read(tmp_path_factory, rows):
    ws = create(tmp_path_factory.mktemp("dirty"))
    contract = Contract(
        key="k",
        max_rejected=1,
        columns={
            "k": Column(dtype="string"),
            "n": Column(dtype="integer", min=0, nullable=True),
            "t": Column(dtype="string"),
        },
    )
    (ws.root / "d.csv").write_text(
        "k,n,t\n" + "".join(",".join(v or "" for v in row) + "\n" for row in rows)
    )
    try:
        version = ingest("d", "d.csv", contract=contract, settings=ws)
    except DataError as e:  # most of a column is of another type: the source has changed
        assert (
            "expected integer" in str(e)
            and not lake.table_exists(ws.table("d"))
            and not files_in(ws.table("d"))
        )
        return
    facts, aside = version.facts, quarantine("d", settings=ws).collect()
    assert facts["read"] == len(rows) == facts["accepted"] + facts["rejected"]
    assert facts["rows"] == version.scan().collect().height and facts["rejected"] == aside.height
    kept = version.scan().drop("_split").collect()
    spelt = [("" if v is None else str(v) for v in row) for row in kept.rows()]
    spelt += [
        ("" if v is None else str(v) for v in json.loads(row).values()) for row in aside["row"]
    ]
    number = lambda n: "" if n in (None, "NaN") else n  # a number that is NaN is missing
    written = [(k or "", number(n), t or "") for k, n, t in rows]
    assert sorted((k, number(n), t) for k, n, t in spelt) == sorted(written)
    assert aside["reason"].str.len_chars().gt(0).all() and kept["k"].is_unique().all()
    assert facts["digest"] == content_digest(version.scan().collect())


def test_what_does_not_parse_is_kept_as_it_was_spelt(ws):
    (ws.root / "d.csv").write_text(
        "k,n\n" + "".join(f"{k},{k}\n" for k in range(200)) + "200,twelve\n"
    )
    contract = Contract(
        columns={"k": Column(dtype="integer"), "n": Column(dtype="integer")}, key="k"
    )
    version = ingest("d", "d.csv", contract=contract, settings=ws)
    aside = quarantine("d", settings=ws).collect().row(0, named=True)
    assert (aside["rules"], aside["source"]) == ("n|dtype", "d.csv")
    assert aside["reason"] == (
        "n must be an integer of 64 bits, written without leading zeros or a plus sign"
    )
    assert json.loads(aside["row"]) == {"k": "200", "n": "twelve"} and version.facts["rows"] == 200


def test_a_type_guessed_too_narrowly_is_widened(ws):
    rows = [*map(str, range(150_000)), "0.5"]
    (ws.root / "d.csv").write_text("k,n\n" + "".join(f"{i},{n}\n" for i, n in enumerate(rows)))
    version = ingest("d", "d.csv", key="k", settings=ws)
    assert version.contract.columns["n"].dtype == "float" and version.facts["rows"] == len(rows)


# --- types come from all values ------------------------------------------------------------------


def text(ws, name, content):
    (ws.root / name).parent.mkdir(parents=True, exist_ok=True)
    (ws.root / name).write_text(content)
    return name


def column(values):
    return "id,v\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values))


def kinds(version):
    return {c: one.dtype for c, one in version.contract.columns.items()}


def ingested(ws, name, source, **how):
    "A version, whatever it warns of."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ingest(name, source, settings=ws, **how)


MANY = 12_000  # rows, more than the sample
LATE = {
    "zip": ([*range(10_000, 10_000 + MANY)], "01234"),
    "phone": ([*range(MANY)], "+49151"),
    "day": (["31/12/2023"] * MANY, "31/12/24"),
    "moment": (["31/12/2023 10:00"] * MANY, "31/12/24 10:00"),
    "order": ([*range(10**17, 10**17 + MANY)], "9" * 20),
    "price": (["0.5"] * MANY, "9007199254740993"),
}


@pytest.mark.parametrize("what", LATE)
def test_evidence_after_the_sample_makes_a_column_text(ws, what):
    values = [*map(str, LATE[what][0]), LATE[what][1]]
    version = ingested(ws, "d", text(ws, "d.csv", column(values)))
    stored = version.scan().sort("id").collect()
    assert kinds(version) == {"id": "integer", "v": "string"} and stored["v"].to_list() == values
    assert f"the first '{LATE[what][1]}' in row 12,001 of d.csv" in version.notes[0]


@pytest.mark.parametrize("what", LATE)
def test_evidence_in_a_later_ingest_is_set_aside_as_it_was_written(ws, what):
    early = [*map(str, LATE[what][0])]
    first = ingest("d", text(ws, "1.csv", column(early)), key="id", settings=ws)
    more = [f"{20_000 + i},{v}\n" for i, v in enumerate([*early[:40], LATE[what][1]])]
    second = ingest("d", text(ws, "2.csv", "id,v\n" + "".join(more)), settings=ws)
    aside = quarantine("d", settings=ws).collect()
    assert kinds(second) == kinds(first) and second.facts["rejected"] == aside.height == 1
    assert json.loads(aside["row"][0]) == {"id": "20040", "v": LATE[what][1]}


@pytest.mark.parametrize(
    "values",
    [
        [*map(str, range(MANY)), "01234"],
        [*map(str, range(10**17, 10**17 + MANY)), "9" * 20],
        ["1.1", "1.10"],
        [*map(str, range(10**17, 10**17 + 100)), "0.5"],
    ],
)
def test_different_keys_stay_different(ws, values):
    source = text(ws, "d.csv", "key,n\n" + "".join(f"{v},1\n" for v in values))
    version = ingested(ws, "d", source, key="key")
    assert sorted(version.scan().collect()["key"].to_list()) == sorted(values)
    assert version.facts["rejected"] == 0


def test_large_typed_integers_stay_what_they_are(ws):
    ids = pl.Series([Decimal(10**19 + i) for i in range(3)], dtype=pl.Decimal(38, 0))
    small = pl.Series([Decimal(1), Decimal(2), None], dtype=pl.Decimal(9, 0))
    unsigned = pl.Series([2**64 - 1, 2**64 - 2, 1], dtype=pl.UInt64)
    frame = pl.DataFrame({"id": ids, "few": small, "u": unsigned})
    frame.write_parquet(ws.root / "d.parquet")
    version = ingested(ws, "d", "d.parquet", key="id")
    assert kinds(version) == {"id": "string", "few": "integer", "u": "string"}
    assert rows_of(version) == [
        (str(10**19), 1, str(2**64 - 1)),
        (str(10**19 + 1), 2, str(2**64 - 2)),
        (str(10**19 + 2), None, "1"),
    ]


def test_integers_of_a_table_do_not_evolve_into_floats_that_lose_them(ws):
    first = ingest("d", put(ws, "1.csv", k=["a"], n=[2**53 + 1]), key="k", settings=ws)
    contract = first.contract.model_copy(update={"on_change": "evolve"})
    with pytest.raises(DataError, match="column 'n' has '9007199254740993', expected number"):
        ingest("d", put(ws, "2.csv", k=["b"], n=[0.5]), contract=contract, settings=ws)
    assert versions.dataset("d", settings=ws).scan().collect()["n"].to_list() == [2**53 + 1]


MICROSECONDS = [datetime(1970, 1, 1, 0, 0, 0, n) for n in range(1, 4)]


@pytest.mark.parametrize("unit, stored", [(1, None), (1000, MICROSECONDS)])
def test_nanoseconds_are_an_error_unless_they_are_whole_microseconds(ws, unit, stored):
    times = pl.Series([unit, 2 * unit, 3 * unit]).cast(pl.Datetime("ns"))
    pl.DataFrame({"id": [1, 2, 3], "at": times}).write_parquet(ws.root / "d.parquet")
    if stored:
        version = ingest("d", "d.parquet", settings=ws)
        assert version.scan().sort("id").collect()["at"].to_list() == stored
        return
    cut = "column 'at' has '1970-01-01 00:00:00.000000001', expected time of whole microseconds"
    with pytest.raises(DataError, match=cut):
        ingest("d", "d.parquet", settings=ws)
    assert not lake.table_exists(ws.table("d")) and not files_in(ws.table("d"))


def written(ws, name, **columns):
    "A file of the kind that its name says."
    frame, path = pl.DataFrame(columns), ws.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".ndjson": frame.write_ndjson}[
        path.suffix
    ](path)
    return name


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_nan_is_a_missing_value(ws, ending):
    nan = float("nan")
    values = [nan if i % 10 == 0 else i / 2 for i in range(100)]
    first = ingest("d", written(ws, f"1.{ending}", id=range(100), x=values), settings=ws)
    assert first.facts["rejected"] == 0 and first.scan().collect()["x"].null_count() == 10
    assert first.contract.columns["x"] == Column(dtype="float", nullable=True, min=0)
    more = written(ws, f"2.{ending}", id=range(3), x=[1.5, nan, nan])
    second = ingest("d", more, settings=ws)
    assert second.facts["rejected"] == 0 and second.scan().collect()["x"].null_count() == 12
    columns = {"id": Column(dtype="integer"), "x": Column(dtype="float")}
    needed = Contract(columns=columns, max_rejected=0.5)
    third = ingest("e", f"1.{ending}", contract=needed, settings=ws)
    reasons = quarantine("e", settings=ws).collect()["reason"]
    assert third.facts["rejected"] == 10 and {*reasons} == {"x must not be missing"}


def test_infinity_is_refused_in_words(ws):
    values = [*map(float, range(99)), float("-inf")]
    pl.DataFrame({"id": range(100), "x": values}).write_parquet(ws.root / "d.parquet")
    version = ingest("d", "d.parquet", settings=ws)
    aside = quarantine("d", settings=ws).collect().row(0, named=True)
    assert version.facts["rows"] == 99 and aside["reason"] == "x must be finite"
    assert json.loads(aside["row"])["x"] == "-inf"


def test_why_an_ingest_fails_is_said_in_words(ws):
    with pytest.raises(DataError, match=r"it allows: x must be finite \(2 rows\)\. Mend"):
        ingest("d", text(ws, "d.csv", "id,x\n1,inf\n2,-inf\n3,2.5\n"), settings=ws)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson"])
def test_the_first_values_settle_the_type_of_a_column_without_any(ws, ending, together):
    written(ws, f"in/1.{ending}", id=[1, 2], bonus=[None, None])
    if not together:
        first = ingest("d", f"in/*.{ending}", key="id", settings=ws)
        assert kinds(first) == {"id": "integer", "bonus": "unknown"}
        assert rows_of(first) == [(1, None), (2, None)]
    written(ws, f"in/2.{ending}", id=[3, 4], bonus=[10.5, 12.5])
    version = ingest("d", f"in/*.{ending}", key="id", settings=ws)
    assert version.contract.columns["bonus"].dtype == "float"
    assert version.contract.columns["bonus"].nullable
    assert rows_of(version) == [(1, None), (2, None), (3, 10.5), (4, 12.5)]
    assert version.facts["digest"] == content_digest(version.scan().collect())
    old = versions.dataset("d@0", settings=ws).scan().collect()
    assert together or old["bonus"].null_count() == old.height == 2


def test_lists_do_not_settle_the_type_of_a_column_without_any(ws):
    first = ingest(
        "d", written(ws, "1.parquet", id=[1, 2], bonus=[None, None]), key="id", settings=ws
    )
    more = written(ws, "2.parquet", id=[3], bonus=[[1, 2]])
    with pytest.raises(
        DataError, match=r"columns of type List\(Int64\) have no place in a contract"
    ):
        ingest("d", more, settings=ws)
    assert versions.dataset("d", settings=ws).ref == first.ref


def test_a_look_at_a_source_gives_a_column_the_type_of_its_first_values(ws):
    text(ws, "in/1.csv", "id,bonus\n1,\n2,\n")
    text(ws, "in/2.csv", "id,bonus\n3,10.5\n")
    assert read_source("in/*.csv", settings=ws)["bonus"].to_list() == [None, None, 10.5]


TIME = datetime(2024, 5, 1, 10)


@pytest.mark.parametrize("first", ["id\n1\n", "id,at\n1,\n", "id,at\n1,2024-04-01\n"])
def test_a_table_without_times_may_get_some(ws, first):
    text(ws, "in/1.csv", first)
    columns = {"id": Column(dtype="integer")}
    if "2024" in first:
        columns["at"] = Column(dtype="date")
    elif "at" in first:
        columns["at"] = Column(dtype="unknown", nullable=True)
    contract = Contract(columns=columns, on_change="evolve")
    before = ingest("d", "in", contract=contract, settings=ws)
    text(ws, "in/2.csv", "id,at\n2,2024-05-01 10:00:00\n")
    version = ingest("d", "in", settings=ws)
    old = datetime(2024, 4, 1) if "2024" in first else None
    assert rows_of(version) == [(1, old), (2, TIME)] and version.parent.ref == before.ref == "d@0"
    text(ws, "in/3.csv", "id,at\n3,2024-05-01 10:00:00\n")
    third = ingest("d", "in", settings=ws)
    assert third.version == version.version + 1 and len(rows_of(third)) == 3
    assert len(rows_of(versions.dataset("d@0", settings=ws))) == 1


@pytest.mark.parametrize(
    "values, kind",
    [
        (["7"], "integer"),
        (["0.5", "7"], "float"),
        (["2024-05-01"], "date"),
        (["yes"], "string"),
        (["true"], "boolean"),
        (["007"], "string"),
        (["NaN"], "unknown"),
    ],
)
@pytest.mark.parametrize("contract", [True, False])
def test_first_values_after_the_sample_settle_a_type(ws, values, kind, contract):
    if contract:
        ingest("d", text(ws, "1.csv", "id,v\n-1,\n"), key="id", settings=ws)
    source = text(ws, "2.csv", column([*[""] * MANY, *values]))
    version = ingest("d", source, key="id", settings=ws)
    assert kinds(version)["v"] == kind and version.facts["rejected"] == 0
    stored = version.scan().sort("id").collect()["v"]
    assert stored.null_count() == len(stored) - (kind != "unknown") * len(values)


@pytest.mark.parametrize(
    "values, kind, word",
    [
        ([*(f"{i}.5" for i in range(MANY)), "N/A"], "written as a number", "N/A"),
        (["N/A", *map(str, range(50))], "written as an integer", "N/A"),
        ([*map(str, range(MANY)), " "], "written as an integer", " "),
        ([*map(str, range(MANY)), "Total"], "written as an integer", "Total"),
        (["2024-05-01"] * MANY + ["0000-00-00"], "written as a date", "0000-00-00"),
        (["31/12/2023"] * 50 + ["0000-00-00"], "written as a date", "0000-00-00"),
        (["true"] * 50 + ["?"], "true or false", "?"),
        ([*(f"{i}.0" for i in range(50)), "NA"], "written as a number", "NA"),
        ([*map(str, range(50)), "n.a."], "written as an integer", "n.a."),
    ],
)
def test_one_word_that_makes_a_column_text_is_named(ws, values, kind, word):
    source = text(ws, "d.csv", column(values))
    with pytest.warns(UserWarning, match=r"d@0: column 'v' is text"):
        version = ingest("d", source, settings=ws)
    assert version.notes == [
        f"column 'v' is text: 1 of {len(values):,} values is not {kind}, the first '{word}' in row "
        f"{values.index(word) + 1:,} of d.csv; options={{'null_values': ['{word}']}} makes it "
        "missing"
    ]
    assert kinds(version)["v"] == "string" and version.facts["rows"] == len(values)
    assert "column &#39;v&#39; is text" in version._repr_html_()
    assert versions.dataset("d", settings=ws).notes == version.notes
    with warnings.catch_warnings(action="error"):
        other = ingest("e", source, options={"null_values": [word]}, settings=ws)
    assert other.notes == [] and kinds(other)["v"] != "string"
    assert other.scan().collect()["v"].null_count() == 1


@pytest.mark.parametrize(
    "other, option", [(";x", {}), (";2,25", {}), (";2,25", {"decimal_comma": True})]
)
def test_one_word_among_numbers_with_a_decimal_comma_is_named(ws, other, option):
    lines = "".join(f"{i};{i},5{other}\n" for i in range(50)) + f"50;NA{other}\n"
    source = text(ws, "d.csv", "id;v;w\n" + lines)
    version = ingested(ws, "d", source, options=option)
    assert kinds(version)["v"] == "string" and version.notes == [
        "column 'v' is text: 1 of 51 values is not written as a number, the first 'NA' in row 51 "
        "of d.csv; options={'null_values': ['NA']} makes it missing"
    ]
    known = ingest("e", source, options=option | {"null_values": ["NA"]}, settings=ws)
    assert known.scan().collect()["v"].sum() == sum(range(50)) + 25


def test_one_word_does_not_hide_that_dates_could_be_read_in_two_ways(ws):
    version = ingested(ws, "d", text(ws, "d.csv", column(["05/01/2024"] * 50 + ["NA"])))
    assert version.notes == [
        "column 'v' is text, because it could be read in two ways: set "
        "date_format=%d/%m/%Y or date_format=%m/%d/%Y"
    ]


def test_one_word_of_json_lines_is_named_without_an_option_that_they_do_not_have(ws):
    lines = [*(f'{{"v": {i}.5}}\n' for i in range(50)), '{"v": "N/A"}\n']
    version = ingested(ws, "d", text(ws, "d.ndjson", "".join(lines)))
    assert version.notes == [
        "column 'v' is text: 1 of 51 values is not written as a number, "
        "the first 'N/A' in row 51 of d.ndjson"
    ]


@pytest.mark.parametrize(
    "value, late, kind",
    [
        ("3", '"N/A"', "written as an integer"),
        ("1.5", '"N/A"', "written as a number"),
        ("true", '"?"', "true or false"),
        ("3", "99999999999999999999", "written as an integer"),
    ],
)
def test_one_word_of_json_lines_is_named_however_late_it_comes(ws, value, late, kind):
    lines = f'{{"v": {value}}}\n' * MANY + f'{{"v": {late}}}\n'
    version, word = ingested(ws, "d", text(ws, "d.ndjson", lines)), late.strip('"')
    assert version.notes == [
        f"column 'v' is text: 1 of {MANY + 1:,} values is not {kind}, "
        f"the first '{word}' in row {MANY + 1:,} of d.ndjson"
    ]
    assert kinds(version)["v"] == "string" and version.facts["rows"] == MANY + 1


def test_digits_that_json_lines_write_as_text_are_text_and_no_exception(ws):
    source = text(ws, "d.ndjson", '{"v": "7"}\n' * 50)
    with warnings.catch_warnings(action="error"):
        version = ingest("d", source, settings=ws)
    assert (kinds(version)["v"], version.notes) == ("string", [])


def test_one_word_in_another_file_is_named_and_the_note_goes_on(ws):
    text(ws, "in/1.csv", column(range(100)))
    text(ws, "in/2.csv", "id,v\n100,N/A\n")
    version = ingested(ws, "d", "in", key="id")
    assert version.notes[0].startswith(
        "column 'v' is text: 1 of 101 values is not written as an "
        "integer, the first 'N/A' in row 1 of in/2.csv"
    )
    text(ws, "in/3.csv", "id,v\n101,5\n")
    assert ingest("d", "in", settings=ws).notes == version.notes


def test_a_column_that_could_be_read_in_two_ways_is_named(ws):
    version = ingested(ws, "d", text(ws, "d.csv", "id,due\n1,05/04/2024\n2,06/04/2024\n"))
    assert version.notes == [
        "column 'due' is text, because it could be read in two ways: "
        "set date_format=%d/%m/%Y or date_format=%m/%d/%Y"
    ]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_float_that_is_whole_is_an_integer_where_one_is_expected(ws, ending):
    ingest("d", written(ws, f"1.{ending}", id=[1, 2], n=[1, None]), key="id", settings=ws)
    version = ingest("d", written(ws, f"2.{ending}", id=[3, 4], n=[3.0, None]), settings=ws)
    assert kinds(version)["n"] == "integer"
    assert rows_of(version) == [(1, 1), (2, None), (3, 3), (4, None)]
    mixed = written(ws, f"3.{ending}", id=range(10, 50), n=[3.5, *map(float, range(39))])
    assert ingest("d", mixed, settings=ws).facts["rejected"] == 1
    assert "3.5" in quarantine("d", settings=ws).collect()["row"][0]
    other = written(ws, f"4.{ending}", id=[60], n=[3.5])
    with pytest.raises(DataError, match="n is float, expected integer"):
        ingest("d", other, settings=ws)


@pytest.mark.parametrize("value", [2**53 + 1, Decimal("12345678901234567.5")])
def test_rows_do_not_conform_where_a_value_would_change(value):
    contract = Contract(columns={"n": Column(dtype="float", nullable=True)})
    with pytest.raises(DataError, match="column 'n' has"):
        conform(pl.DataFrame({"n": [value]}), contract)


def test_nan_is_missing_for_every_rule():
    nan = pl.DataFrame({"n": [1.5, float("nan")]})
    contract = Contract(columns={"n": Column(dtype="float", nullable=True)})
    assert infer(nan).columns["n"].nullable
    assert conform(nan, contract)["n"].to_list() == [1.5, None]
    assert enforce(nan, contract)[0]["n"].to_list() == [1.5, None]


# --- one inference, one conformance check, one uniqueness check -----------------------------------

FRAMES = {
    "plain": pl.DataFrame(
        {"k": ["a", "b", "c"], "n": [3, 1, None], "x": [0.5, -1.5, 2.0], "c": ["u", "v", "u"]}
    ),
    "no values": pl.DataFrame({"k": [1, 2], "bonus": [None, None], "x": [float("nan"), 1.0]}),
    "large integers": pl.DataFrame(
        {
            "k": [1, 2],
            "n": pl.Series([2**64 - 1, 1], dtype=pl.UInt64),
            "d": pl.Series([Decimal(10**19), Decimal(1)], dtype=pl.Decimal(38, 0)),
        }
    ),
    "integers and fractions": pl.DataFrame(
        {"k": [1, 2], "d": pl.Series([Decimal("1.5"), Decimal(2)])}
    ),
    "times": pl.DataFrame(
        {
            "k": [1, 2],
            "at": pl.Series([1000, 2000]).cast(pl.Datetime("ns")),
            "day": [TIME.date(), None],
        }
    ),
    "words": pl.DataFrame(
        {"k": [1, 2, 3, 4], "c": pl.Series(["a", "b", "a", "b"], dtype=pl.Categorical)}
    ),
}


@pytest.mark.parametrize("what", FRAMES)
def test_infer_proposes_what_a_first_ingest_of_the_rows_proposes(ws, what):
    FRAMES[what].write_parquet(ws.root / "d.parquet")
    version = ingested(ws, "d", "d.parquet", key="k")
    assert infer(FRAMES[what], key="k") == version.contract
    assert version.facts["rows"] == FRAMES[what].height and version.contract.version == 1


@settings(slow, max_examples=15)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 1)), min_size=1, max_size=8))
def test_enforce_sets_aside_what_an_ingest_of_the_rows_sets_aside(tmp_path_factory, rows):
    ws = create(tmp_path_factory.mktemp("unique"))
    frame = pl.DataFrame(rows, schema={"k": pl.String, "v": pl.Int64}, orient="row")
    columns = {"k": Column(dtype="string"), "v": Column(dtype="integer", min=0)}
    contract = Contract(columns=columns, key="k", max_rejected=1)
    frame.write_parquet(ws.root / "d.parquet")
    version, aside = (
        ingest("d", "d.parquet", contract=contract, settings=ws),
        quarantine("d", settings=ws).collect(),
    )
    good, bad = enforce(conform(frame, contract), contract)
    assert rows_of(version) == sorted(good.rows())
    assert sorted(aside["rules"]) == sorted(bad["_rules"])
    assert sorted(map(json.loads, aside["row"]), key=repr) == sorted(
        bad.select("k", "v").to_dicts(), key=repr
    )


def test_a_guess_that_several_columns_break_is_settled_once(ws, monkeypatch):
    "Written by the guess, read to find the types of all columns, written once more."
    rows = [f"{i},{i},{i}.5,{i}" for i in range(MANY)]
    rows[-3:] = [f"{MANY - 3},0.5,1.5,1", f"{MANY - 2},1,n.a.,1", f"{MANY - 1},1,1.5,007"]
    passes, real = [], Part.batches
    monkeypatch.setattr(
        Part, "batches", lambda self, *a, **how: passes.append(self) or real(self, *a, **how)
    )
    version = ingested(ws, "d", text(ws, "d.csv", "id,a,b,c\n" + "\n".join(rows) + "\n"), key="id")
    assert kinds(version) == {"id": "integer", "a": "float", "b": "string", "c": "string"}
    assert len(passes) == 3 and version.facts["rows"] == MANY and len(version.notes) == 2
    assert files_in(ws.table("d")) == {f.path for f in data_files.table_files(ws.table("d"))}
    passes.clear()
    ingest("e", text(ws, "e.csv", column(range(MANY))), key="id", settings=ws)
    assert len(passes) == 1


def test_a_failed_note_leaves_no_file(ws, monkeypatch):
    def fails(*_):
        raise DataError("the source changed")

    monkeypatch.setattr(steps, "text_column_notes", fails)
    with pytest.raises(DataError, match="the source changed"):
        ingest("d", put(ws, "d.csv", k=[1]), settings=ws)
    assert not lake.table_exists(ws.table("d")) and not files_in(ws.table("d"))


def test_kinds_and_the_base_of_columns_have_one_home():
    assert signature.kind_of is features.kind_of is contracts.kind_of is values.kind_of
    assert issubclass(signature.InputColumn, values.TypedColumn) and issubclass(
        Column, values.TypedColumn
    )


# --- the same table, whatever the order -----------------------------------------------------------

small = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=5
)


@settings(slow, max_examples=10)
@given(st.lists(small, min_size=2, max_size=3), st.randoms(use_true_random=False), st.booleans())
def test_any_order_and_any_number_of_times_give_the_same_table(
    tmp_path_factory, deliveries, random, timed
):
    folder, digests = tmp_path_factory.mktemp("order"), []
    names = [str(folder / f"{i}.csv") for i in range(len(deliveries))]
    for name, rows in zip(names, deliveries):
        pl.DataFrame(
            rows, schema={"k": pl.String, "v": pl.Int64, "t": pl.Int64}, orient="row"
        ).write_csv(name)
    contract = Contract(
        columns={
            "k": Column(dtype="string"),
            "v": Column(dtype="integer"),
            "t": Column(dtype="integer"),
        },
        key="k",
        time="t" if timed else None,
        max_rejected=1,
    )
    for attempt in range(2):
        ws = create(folder / str(attempt))
        order = random.sample(names, k=len(names)) + random.choices(names, k=2)
        for name in order:
            version = ingest("d", name, contract=contract, settings=ws)
        assert version.facts["digest"] == content_digest(version.scan().collect())
        digests.append((version.facts["digest"], rows_of(version)))
    assert digests[0] == digests[1]


def test_the_greater_time_counts_then_the_files_digest(ws):
    put(ws, "late.csv", k=["a", "b"], v=[1, 1], t=[9, 5])
    put(ws, "early.csv", k=["a", "b"], v=[2, 2], t=[3, 5])
    for first, second in itertools.permutations(["late.csv", "early.csv"]):
        name = f"from_{first[:4]}"
        ingest(name, first, key="k", time="t", settings=ws)
        version = ingest(name, second, settings=ws)
        found = dict(version.scan().select("k", "v").collect().iter_rows())
        digests = {
            1: Source("late.csv", ws.root).parts()[0].state["digest"],
            2: Source("early.csv", ws.root).parts()[0].state["digest"],
        }
        assert found == {"a": 1, "b": max(digests, key=digests.get)}
        assert version.facts["replaced"] + version.facts["late"] == 2


def test_rows_of_one_key_within_an_ingest(ws):
    "Across files of one ingest too: what differs is quarantined, what is the same is kept once."
    put(ws, "in/1.csv", k=["a", "b", "c", *map(str, range(50))], v=[1, 2, 3] + [0] * 50)
    put(ws, "in/2.csv", k=["a", "b", "d"], v=[1, 9, 4])
    contract = Contract(
        columns={"k": Column(dtype="string"), "v": Column(dtype="integer")},
        key="k",
        max_rejected=0.1,
    )
    version = ingest("d", "in", contract=contract, settings=ws)
    aside = quarantine("d", settings=ws).collect()
    assert sorted(json.loads(r)["k"] for r in aside["row"]) == ["a", "b", "b"]
    assert set(aside["source"]) <= {"in/1.csv", "in/2.csv"} and version.facts["rows"] == 53
    assert version.profile().rows == version.counts["train"]


def test_new_files_only_are_read(ws):
    put(ws, "in/1.csv", k=["a", "b"], v=[1, 2])
    first = ingest("d", "in", key="k", settings=ws)
    put(ws, "in/2.csv", k=["c"], v=[3])
    second = ingest("d", "in", settings=ws)
    assert (second.facts["read"], second.facts["rows"], second.parent.ref) == (1, 3, first.ref)
    assert [*second.facts["files"]] == ["in/2.csv"]
    assert ingest("d", "in", settings=ws).ref == second.ref
    whole = profile(second.scan("train"))
    assert second.profile().summary().equals(whole.summary())


def test_without_a_key_a_files_new_content_replaces_its_old(ws):
    put(ws, "in/1.csv", v=[1, 1, 2])
    put(ws, "in/2.csv", v=[7])
    ingest("d", "in", settings=ws)
    put(ws, "in/1.csv", v=[1, 3])
    version = ingest("d", "in", settings=ws)
    assert rows_of(version) == [(1,), (3,), (7,)] and version.facts["replaced"] == 3
    assert version.facts["digest"] == content_digest(version.scan().collect())


def test_another_contract_judges_all_rows_anew(ws):
    put(ws, "d.csv", k=list(range(100)), v=list(range(100)))
    first = ingest("d", "d.csv", key="k", settings=ws)
    strict = first.contract.model_copy(
        update={"columns": first.contract.columns | {"v": Column(dtype="integer", max=97)}}
    )
    second = ingest("d", "d.csv", contract=strict, settings=ws)
    assert (second.facts["rows"], second.facts["rejected"], second.facts["replaced"]) == (
        98,
        2,
        100,
    )
    assert ingest("d", "d.csv", contract=strict, settings=ws).ref == second.ref
    third = ingest("d", "d.csv", contract=first.contract, settings=ws)
    assert third.facts["digest"] == first.facts["digest"] and first.scan().collect().height == 100


# --- what a contract can say ----------------------------------------------------------------------

COLUMNS = {
    "k": Column(dtype="string"),
    "a": Column(dtype="float"),
    "b": Column(dtype="float", nullable=True),
}


def test_rules_between_columns(ws):
    put(ws, "d.csv", k=["x", "y", "z"], a=[1.0, 2.0, 3.0], b=[2.0, 1.0, None])
    contract = Contract(
        columns=COLUMNS,
        key="k",
        max_rejected=1,
        rules={"a under b": "a < b", "small": pl.col("a") < 3},
    )
    version = ingest("d", "d.csv", contract=contract, settings=ws)
    aside = quarantine("d", settings=ws).sort("row").collect()
    assert rows_of(version) == [("x", 1.0, 2.0)] and aside["rules"].to_list() == [
        "a under b",
        "small",
    ]
    assert aside["reason"][0] == "a under b: a < b" and version.contract == contract


def test_a_stale_delivery_fails(ws):
    now = datetime.now(UTC).replace(tzinfo=None)
    contract = Contract(
        columns={"k": Column(dtype="integer"), "at": Column(dtype="datetime")},
        key="k",
        time="at",
        fresh_hours=2,
    )
    put(ws, "old.csv", k=[1], at=[now - timedelta(hours=3)])
    with pytest.raises(DataError, match="3.0 h ago: the contract allows 2 h"):
        ingest("d", "old.csv", contract=contract, settings=ws)
    assert not lake.table_exists(ws.table("d")) and not files_in(ws.table("d"))
    put(ws, "new.csv", k=[1], at=[now - timedelta(hours=1)])
    assert ingest("d", "new.csv", contract=contract, settings=ws).facts["rows"] == 1


def test_rows_as_a_whole(ws):
    put(ws, "d.csv", k=["x", "y"], a=[1.0, 3.0], b=[2.0, 1.0])
    contract = Contract(columns=COLUMNS, key="k", aggregates={"a": {"mean": [5, 10]}})
    with pytest.raises(DataError, match=r"as a whole break the contract: a mean \[5, 10\]"):
        ingest("d", "d.csv", contract=contract, settings=ws)
    assert not files_in(ws.table("d"))
    contract = Contract(columns=COLUMNS, key="k", aggregates={"a": {"mean": [1, 3]}})
    assert ingest("d", "d.csv", contract=contract, settings=ws).facts["rows"] == 2


def evolving(ws):
    put(ws, "1.csv", k=["a", "b"], n=[1, 2], gone=["x", "y"])
    version = ingest("d", "1.csv", key="k", settings=ws)
    return version.contract.model_copy(update={"on_change": "evolve"})


def test_columns_that_changed_evolve(ws):
    contract = evolving(ws)
    put(ws, "2.csv", k=["b", "c"], n=[2.5, 3.5], more=[True, False])
    version = ingest("d", "2.csv", contract=contract, settings=ws)
    assert version.contract.version == 2 and version.contract.columns["n"].dtype == "float"
    assert sorted(version.scan().select("k", "n", "gone", "more").collect().rows()) == [
        ("a", 1.0, "x", None),
        ("b", 2.5, None, True),
        ("c", 3.5, None, False),
    ]
    assert version.facts["digest"] == content_digest(version.scan().collect())
    again = ingest("d", "2.csv", contract=contract, settings=ws)
    assert again.ref == version.ref
    old = versions.dataset("d@0", settings=ws)
    assert old.scan().collect().columns == ["k", "n", "gone", "_split"]


def test_a_key_does_not_evolve(ws):
    contract = evolving(ws)
    put(ws, "2.csv", n=[1], gone=["z"])
    with pytest.raises(DataError, match="missing column k"):
        ingest("d", "2.csv", contract=contract, settings=ws)


def test_schema_changed_between_files_writes_nothing(ws):
    put(ws, "in/1.csv", k=["a"], v=[1])
    put(ws, "in/2.csv", k=["b"], w=[1])
    with pytest.raises(
        DataError, match="new column w.*missing column v|missing column v.*new column w"
    ):
        ingest("d", "in", key="k", settings=ws)
    assert not lake.table_exists(ws.table("d")) and not files_in(ws.table("d"))


# --- splits ---------------------------------------------------------------------------------------


def test_a_group_never_straddles_and_splits_stay(ws):
    rows = pl.DataFrame({"k": range(2000), "house": [i % 300 for i in range(2000)]})
    put(ws, "1.csv", **rows[:1000].to_dict(as_series=False))
    put(ws, "2.csv", **rows[1000:].to_dict(as_series=False))
    first = ingest("d", "1.csv", key="k", group="house", settings=ws)
    second = ingest("d", "2.csv", settings=ws)
    table = second.scan().collect()
    assert table.group_by("house").agg(pl.col("_split").n_unique())["_split"].max() == 1
    before = dict(first.scan().select("k", "_split").collect().iter_rows())
    assert all(before.get(k, s) == s for k, s in table.select("k", "_split").iter_rows())
    with pytest.raises(DataError, match="a row never changes its split"):
        ingest("d", "1.csv", shares={"train": 0.5, "test": 0.5}, settings=ws)


def test_splits_by_time(ws):
    days = [datetime(2024, 1, 1) + timedelta(days=i) for i in range(100)]
    put(ws, "1.csv", k=list(range(100)), at=days)
    version = ingest(
        "d",
        "1.csv",
        key="k",
        time="at",
        ends="shares",
        shares={"train": 0.7, "test": 0.3},
        settings=ws,
    )
    assert abs(version.counts["train"] - 70) <= 2
    ends = (
        version.scan()
        .group_by("_split")
        .agg(pl.col("at").min().alias("first"), pl.col("at").max().alias("last"))
        .collect()
    )
    at = {r["_split"]: r for r in ends.iter_rows(named=True)}
    assert at["train"]["last"] < at["test"]["first"]
    put(ws, "2.csv", k=[100], at=[datetime(2025, 1, 1)])
    assert ingest("d", "2.csv", settings=ws).counts["test"] == version.counts["test"] + 1
    stated = ingest(
        "e", "1.csv", key="k", time="at", ends={"train": "2024-02-01", "test": None}, settings=ws
    )
    assert stated.counts == {"test": 69, "train": 31}


# --- failures -------------------------------------------------------------------------------------


def test_a_failed_ingest_leaves_no_file(ws, monkeypatch):
    put(ws, "1.csv", k=[1], v=[-1])
    put(ws, "2.csv", k=[2], v=[1])
    ingest("d", "2.csv", key="k", settings=ws)
    before = files_in(ws.table("d"))

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(data_files, "commit_files", fails)
    contract = versions.dataset("d", settings=ws).contract.model_copy(update={"max_rejected": 1})
    with pytest.raises(OSError, match="disk full"):
        ingest("d", "1.csv", contract=contract, settings=ws)
    assert files_in(ws.table("d")) == before and not files_in(ws.table("d__quarantine"))


def test_a_quarantine_without_its_ingest_does_not_count(ws, monkeypatch):
    put(ws, "d.csv", k=list(range(50)), v=[1] * 49 + [-1])
    contract = Contract(
        columns={"k": Column(dtype="integer"), "v": Column(dtype="integer", min=0)}, key="k"
    )
    real = data_files.commit_files

    def dies_between(table, *given, **named):
        if not table.endswith("__quarantine"):
            raise KeyboardInterrupt
        return real(table, *given, **named)

    with monkeypatch.context() as m:
        m.setattr(data_files, "commit_files", dies_between)
        with pytest.raises(KeyboardInterrupt):
            ingest("d", "d.csv", contract=contract, settings=ws)
    assert quarantine("d", settings=ws).collect().is_empty()
    version = ingest("d", "d.csv", contract=contract, settings=ws)
    assert quarantine("d", settings=ws).collect().height == 1 == version.facts["rejected"]


def test_what_dead_ingests_left_is_removed_a_day_later(ws):
    put(ws, "1.csv", k=[1])
    put(ws, "2.csv", k=[2])
    ingest("d", "1.csv", key="k", settings=ws)
    kept, table = files_in(ws.table("d")), Path(ws.table("d"))
    old, young = (
        data_files.write_file(str(table), pl.DataFrame({"k": [9]}), f"{i}-0.parquet").path
        for i in ("a" * 16, "b" * 16)
    )
    for name in (old, *kept):
        os.utime(table / name, (time.time() - 90_000,) * 2)
    ingest("d", "2.csv", settings=ws)
    assert old not in files_in(table) and {young, *kept} <= files_in(table)
    assert versions.dataset("d", settings=ws).scan().collect().height == 2


def test_storage_in_a_bucket(s3, tmp_path):
    ws = create(tmp_path / "ws", workspace={"storage": f"{s3.address}/store"})
    put(ws, "1.csv", k=list(range(100)), v=[*range(98), -1, -2])
    put(ws, "2.csv", k=[5, 200], v=[55, 200])
    contract = Contract(
        columns={"k": Column(dtype="integer"), "v": Column(dtype="integer", min=0)}, key="k"
    )
    ingest("d", "1.csv", contract=contract, settings=ws)
    version = ingest("d", "2.csv", settings=ws)
    table = version.scan().collect()
    assert table.height == version.facts["rows"] == 99 and table.filter(k=5)["v"].item() == 55
    assert (
        version.facts["digest"] == content_digest(table)
        and quarantine("d", settings=ws).collect().height == 2
    )
    assert versions.dataset("d@1", settings=ws).parent.scan().collect().height == 98


# --- other sources --------------------------------------------------------------------------------


def sql(ws, *statements):
    with contextlib.closing(sqlite3.connect(ws.root / "shop.db")) as db, db:
        for statement in statements:
            db.execute(statement)


def test_a_database_grows_past_its_watermark(ws):
    sql(
        ws,
        "CREATE TABLE orders (id INTEGER, total REAL, at TEXT)",
        "INSERT INTO orders VALUES (1, 9.5, '2024-01-01'), (2, 3.0, '2024-01-02')",
    )
    address = "sqlite:///shop.db#table=orders&watermark=at"
    first = ingest("orders", address, key="id", time="at", settings=ws)
    assert ingest("orders", address, settings=ws).ref == first.ref
    sql(
        ws,
        "INSERT INTO orders VALUES (3, 1.0, '2024-01-03')",
        "UPDATE orders SET total = 4.0, at = '2024-01-04' WHERE id = 2",
    )
    second = ingest("orders", address, settings=ws)
    assert (second.facts["read"], second.facts["replaced"]) == (2, 1)
    assert dict(second.scan().select("id", "total").collect().iter_rows()) == {
        1: 9.5,
        2: 4.0,
        3: 1.0,
    }


def test_a_database_without_a_watermark_is_what_it_is_now(ws):
    sql(
        ws,
        "CREATE TABLE orders (id INTEGER, total REAL)",
        "INSERT INTO orders VALUES (1, 9.5), (2, 3.0)",
    )
    address = "sqlite:///shop.db#query=SELECT id, total FROM orders WHERE total > 2"
    first = ingest("orders", address, settings=ws)
    assert ingest("orders", address, settings=ws).ref == first.ref
    sql(ws, "DELETE FROM orders WHERE id = 1", "INSERT INTO orders VALUES (3, 7.0), (4, 1.0)")
    second = ingest("orders", address, settings=ws)
    assert rows_of(second) == [(2, 3.0), (3, 7.0)] and second.facts["replaced"] == 2


def test_postgresql_and_its_password(ws, postgres):
    from mlops_nb.data.sources.connections import connect_database

    with contextlib.closing(connect_database(postgres)) as db, db.cursor() as cursor:
        cursor.execute("CREATE TABLE readings (id BIGINT, celsius DOUBLE PRECISION, at TIMESTAMP)")
        cursor.execute(
            "INSERT INTO readings SELECT i, i / 10.0, "
            "TIMESTAMP '2024-01-01' + i * INTERVAL '1 hour' FROM generate_series(1, 5000) i"
        )
        db.commit()
    address = f"{postgres}#table=readings&watermark=at"
    first = ingest("readings", address, key="id", time="at", settings=ws)
    with contextlib.closing(connect_database(postgres)) as db, db.cursor() as cursor:
        cursor.execute(
            "INSERT INTO readings VALUES (5001, 1.5, '2025-01-01'), (1, 99.0, '2025-01-02')"
        )
        db.commit()
    second = ingest("readings", address, settings=ws)
    assert (
        first.facts["rows"],
        second.facts["read"],
        second.facts["rows"],
        second.facts["replaced"],
    ) == (5000, 2, 5001, 1)
    written = b"".join(p.read_bytes() for p in ws.root.rglob("*") if p.is_file())
    assert b"sesame" not in written and "***" in second.facts["source"]


def test_a_delta_table_grows(ws):
    place = str(ws.root / "warehouse" / "stock")
    Path(place).parent.mkdir()
    pl.DataFrame({"item": ["bolt", "nut"], "pieces": [1, 2]}).write_delta(place)
    first = ingest("stock", "warehouse/stock", key="item", settings=ws)
    pl.DataFrame({"item": ["washer"], "pieces": [3]}).write_delta(place, mode="append")
    second = ingest("stock", "warehouse/stock", settings=ws)
    assert (second.facts["read"], second.facts["rows"]) == (1, 3)
    assert ingest("stock", "warehouse/stock", settings=ws).ref == second.ref
    old = ingest("old", "delta:warehouse/stock#version=0", key="item", settings=ws)
    assert rows_of(old) == rows_of(first)


@pytest.mark.parametrize(
    "name, write",
    [
        ("d.parquet", pl.DataFrame.write_parquet),
        ("d.arrow", pl.DataFrame.write_ipc),
        ("d.ndjson", pl.DataFrame.write_ndjson),
        ("d.tsv", lambda f, p: f.write_csv(p, separator="\t")),
        ("d.csv", lambda f, p: f.write_csv(p, separator=";")),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(ws, name, write):
    rows = pl.DataFrame(
        {
            "k": ["a", "b"],
            "n": [1, None],
            "x": [0.5, -1.5],
            "ok": [True, False],
            "day": [datetime(2024, 1, 31).date(), datetime(2024, 2, 29).date()],
        }
    )
    write(rows, ws.root / name)
    version = ingest("d", name, key="k", settings=ws)
    assert version.scan().drop("_split").sort("k").collect().equals(rows)
    assert {c: d.dtype for c, d in version.contract.columns.items()} == {
        "k": "string",
        "n": "integer",
        "x": "float",
        "ok": "boolean",
        "day": "date",
    }


# --- names, and the narrow places -----------------------------------------------------------------


def test_columns_may_have_any_name(ws):
    names = ["filter", "columns", "a, b", "x|min", "class", "größe", "with space", "Contract"]
    put(ws, "d.csv", k=[1, 2, 3], **{n: [1, 2, -1] for n in names})
    columns = {"k": Column(dtype="integer"), **{n: Column(dtype="integer", min=0) for n in names}}
    contract = Contract(
        columns=columns, key="k", max_rejected=1, rules={"a, then b": '"filter" < 2'}
    )
    version = ingest("d", "d.csv", contract=contract, settings=ws)
    aside = quarantine("d", settings=ws).sort("row").collect()
    assert version.facts["rows"] == 1 and aside["rules"][0] == "a, then b"
    assert aside["reason"][1] == "; ".join(f"{n} must be at least 0.0" for n in names)


def test_names_that_a_dataset_has_itself_are_refused(ws):
    put(ws, "d.csv", k=[1], _split=["test"])
    with pytest.raises(DataError, match="column _split: a dataset has its own"):
        ingest("d", "d.csv", key="k", settings=ws)


def test_without_a_key_a_row_keeps_its_split_too(ws):
    put(ws, "d.csv", v=list(range(500)))
    before = dict(ingest("d", "d.csv", settings=ws).scan().collect().iter_rows())
    put(ws, "d.csv", v=list(range(600)))
    after = dict(ingest("d", "d.csv", settings=ws).scan().collect().iter_rows())
    assert all(after[v] == where for v, where in before.items()) and len(after) == 600


def test_a_narrower_type_does_not_change_what_the_table_has(ws):
    put(ws, "1.csv", k=[1, 2], v=[1.5, 2.0])
    put(ws, "2.csv", k=[3], v=[1])
    first = ingest("d", "1.csv", key="k", settings=ws)
    narrow = first.contract.model_copy(
        update={"columns": first.contract.columns | {"v": Column(dtype="integer")}}
    )
    with pytest.raises(DataError, match="column 'v' has '1.5', expected integer"):
        ingest("d", "2.csv", contract=narrow, settings=ws)
    assert versions.dataset("d", settings=ws).ref == first.ref


def test_who_made_a_version(ws):
    put(ws, "d.csv", k=[1])
    made = ingest("d", "d.csv", key="k", by="ann", options={"separator": ","}, settings=ws)
    found = versions.dataset("d", settings=ws)
    assert found.facts == made.facts and (found.facts["by"], found.facts["options"]) == (
        "ann",
        {"separator": ","},
    )


def test_another_writer_may_replace_rows_before_an_ingest_has_ended(ws, monkeypatch):
    "What it left of the first one's files is part of the first version for ever."
    put(ws, "1.csv", k=[1, 2], v=[1, 1], t=[1, 1])
    put(ws, "2.csv", k=[1, 2, 3], v=[2, 2, 2], t=[2, 2, 2])
    real = data_files.commit_files

    def overtaken(table, *given, **named):
        version = real(table, *given, **named)
        if version == 0:
            monkeypatch.setattr(data_files, "commit_files", real)
            ingest("d", "2.csv", settings=ws)
        return version

    monkeypatch.setattr(data_files, "commit_files", overtaken)
    ingest("d", "1.csv", key="k", time="t", settings=ws)
    assert rows_of(versions.dataset("d@0", settings=ws)) == [(1, 1, 1), (2, 1, 1)]
    assert rows_of(versions.dataset("d@1", settings=ws)) == [(1, 2, 2), (2, 2, 2), (3, 2, 2)]


def test_two_who_ingest_the_same_rows_without_a_key_do_it_once(ws, monkeypatch):
    "The second began before the first had committed, from another version of the table."
    put(ws, "0.csv", v=[0])
    put(ws, "1.csv", v=[1, 2])
    put(ws, "2.csv", v=[3])
    ingest("d", "0.csv", settings=ws)
    real = data_files.commit_files

    def overtaken(table, *given, **named):
        monkeypatch.setattr(data_files, "commit_files", real)
        for name in ("2.csv", "1.csv"):
            ingest("d", name, settings=ws)
        return real(table, *given, **named)

    monkeypatch.setattr(data_files, "commit_files", overtaken)
    ingest("d", "1.csv", settings=ws)
    assert rows_of(versions.dataset("d", settings=ws)) == [(0,), (1,), (2,), (3,)]


# --- bad input ------------------------------------------------------------------------------------

BAD = {
    "empty": (b"", "is empty: expected a header"),
    "header only": (b"k,v\n", "has a header and no rows"),
    "binary": (b"\x00\x01\xff\xfe" * 100, "NUL bytes"),
    "wrong delimiter": (b"k|v;w\n" + b"1|2;3\n" * 5, "could be separated by semicolon or pipe"),
    "duplicate columns": (b"k,v,v\n1,2,3\n", r"columns of the same name \(v\)"),
    "10,000 columns": (
        ",".join(["k", *(f"c{i}" for i in range(9999))]).encode() + b"\n" + b"1," * 9999 + b"1\n",
        "10,?000",
    ),
    "longer lines": (
        b"k,v\n" + b"1,2\n" * 5 + b"1,2,3\n",
        "row 6 of bad.csv has 3 fields, expected 2",
    ),
    "shorter lines": (b"k,v\n" + b"1,2\n" * 5 + b"1\n", "row 6 of bad.csv has 1 field, expected 2"),
    "an open quote": (b'k,v\n1,"2\n' + b"3,4\n" * 5, "quote"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_and_nothing_is_committed(ws, what):
    content, says = BAD[what]
    (ws.root / "bad.csv").write_bytes(content)
    with pytest.raises(DataError, match=says):
        ingest("d", "bad.csv", key="k", settings=ws)
    for table in ("d", "d__quarantine"):
        assert not lake.table_exists(ws.table(table)) and not files_in(ws.table(table))
    assert events.history(ws.events, kind="ingested").collect().is_empty()


@contextlib.contextmanager
def unprivileged():
    "Root may read every file; here it is nobody for a while."
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_a_file_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        ws = create(Path(folder) / "ws")
        put(ws, "d.csv", k=[1])
        (ws.root / "d.csv").chmod(0)
        for path in (ws.root, ws.root / "storage"):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        with unprivileged(), pytest.raises(DataError, match="cannot be opened: Permission denied"):
            ingest("d", "d.csv", key="k", settings=ws)
        assert not lake.table_exists(ws.table("d")) and not files_in(ws.table("d"))


def test_a_value_of_another_type_far_into_a_database(ws):
    sql(
        ws,
        "CREATE TABLE t (id INTEGER, v)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) "
        "INSERT INTO t SELECT i, CASE WHEN i < 4990 THEN i ELSE 'x' END FROM n",
    )
    with pytest.raises(DataError, match="column 'v'"):
        ingest("d", "sqlite:///shop.db#table=t", key="id", settings=ws)
    assert not lake.table_exists(ws.table("d")) and not files_in(ws.table("d"))


def test_a_dropped_connection_commits_nothing(ws, postgres):
    from mlops_nb.data.sources.connections import connect_database

    with contextlib.closing(connect_database(postgres)) as db, db.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE big AS SELECT i AS id, repeat('x', 200) AS v "
            "FROM generate_series(1, 1000000) i"
        )
        db.commit()

    def cut():
        with contextlib.closing(connect_database(postgres)) as db, db.cursor() as cursor:
            while not ended.wait(0.05):
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE query LIKE 'COPY (%big%' AND pid <> pg_backend_pid()"
                )
                cursor.fetchall()
                db.commit()  # a transaction sees the activity of its beginning

    ended = threading.Event()
    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        with pytest.raises(DataError, match="cannot be read|cannot be looked at") as caught:
            ingest("d", f"{postgres}#table=big", key="id", settings=ws)
    finally:
        ended.set()
        cutter.join()
    assert "sesame" not in str(caught.value)
    assert not lake.table_exists(ws.table("d")) and not files_in(ws.table("d"))


INGEST = """
import sys
from mlops_nb.core.settings import load_settings
from mlops_nb.data.contracts import Column, Contract
from mlops_nb.data.ingest import ingest
contract = Contract(columns={"k": Column(dtype="integer"), "v": Column(dtype="integer", min=0)},
                             key="k")
print("ready", flush=True)
settings = load_settings(sys.argv[1])
for source in sys.argv[2:]: ingest("d", source, contract=contract, settings=settings)
print("done", flush=True)
"""


def ingesting(ws, *sources):
    process = subprocess.Popen(
        [sys.executable, "-c", INGEST, str(ws.root), *sources],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline().strip() == "ready"
    return process


def rows_for(start, n):
    return {
        "k": list(range(start, start + n)),
        "v": [-1 if k % 100 == 0 else k for k in range(start, start + n)],
    }


@pytest.fixture(scope="module")
def duration(tmp_path_factory):
    "How long two deliveries take, and what comes of them."
    ws = create(tmp_path_factory.mktemp("whole"))
    put(ws, "1.csv", **rows_for(0, 60_000))
    put(ws, "2.csv", **rows_for(40_000, 60_000))
    process, began = ingesting(ws, "1.csv", "2.csv"), time.monotonic()
    assert process.communicate()[0].strip() == "done"
    return time.monotonic() - began


@pytest.mark.chaos
def test_killed_ingests_take_in_every_row_once(ws, duration, round_):
    put(ws, "1.csv", **rows_for(0, 60_000))
    put(ws, "2.csv", **rows_for(40_000, 60_000))
    process = ingesting(ws, "1.csv", "2.csv")
    time.sleep(random.Random(round_).uniform(0, duration))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ingesting(ws, "1.csv", "2.csv").communicate()[0].strip() == "done"
    version = versions.dataset("d", settings=ws)
    table = version.scan().collect()
    assert table["k"].sort().to_list() == [k for k in range(100_000) if k % 100]
    assert (
        version.facts["digest"] == content_digest(table) and version.facts["rows"] == table.height
    )
    aside = quarantine("d", settings=ws).collect()
    assert aside.group_by("ingest").len()["len"].to_list() == [600, 600]
    recorded = events.history(ws.events, kind="ingested").collect()["subject"].to_list()
    assert recorded == ["d@0", "d@1"] and version.profile().rows == version.counts["train"]


@pytest.mark.chaos
def test_two_writers_at_once_are_both_in(ws, round_):
    put(ws, "0.csv", **rows_for(0, 1000))
    put(ws, "1.csv", **rows_for(500, 20_000))
    put(ws, "2.csv", **rows_for(600, 20_000))
    there = round_ % 2  # else both make the table
    if there:
        assert ingesting(ws, "0.csv").communicate()[0].strip() == "done"
    both = [ingesting(ws, f"{i}.csv") for i in (1, 2)]
    assert [p.communicate()[0].strip() for p in both] == ["done", "done"]
    version = versions.dataset("d", settings=ws)
    table = version.scan().collect()
    assert table["k"].sort().to_list() == [k for k in range(0 if there else 500, 20_600) if k % 100]
    assert version.version == 1 + there
    assert version.facts["digest"] == content_digest(table)


STEPS = [
    (steps, "committed"),
    (steps, "ingested_parts"),
    (steps, "plan_change"),
    (steps, "_facts"),
    (steps, "_commit_quarantine"),
    (steps, "_merged_profile"),
    (steps, "record_version"),
]  # of an ingest, from its commit on


@pytest.mark.parametrize(
    ("module", "step", "there"),
    [(*step, there) for step in STEPS for there in (False, True)]
    + [(plan, "ingested_parts", True)],
)
def test_another_ingest_between_any_two_steps_of_one_loses_nothing(
    ws, monkeypatch, module, step, there
):
    contract = Contract(
        columns={"k": Column(dtype="integer"), "v": Column(dtype="integer", min=0)},
        key="k",
        max_rejected=0.2,
    )
    for i, start in enumerate((0, 500, 600)):
        put(ws, f"{i}.csv", **rows_for(start, 1000))
    if there:
        ingest("d", "0.csv", contract=contract, settings=ws)
    real, cut_in = getattr(module, step), []

    def before_and_after(*args, **kwargs):
        if not cut_in:
            cut_in.append(True)
            result = (
                real(*args, **kwargs) if step == "committed" else None
            )  # it has looked, and now it changes
            other = ingest("d", "1.csv", contract=contract, settings=ws)
            assert versions.dataset("d", settings=ws).version >= other.version
            if result is not None:
                return result
        return real(*args, **kwargs)

    monkeypatch.setattr(module, step, before_and_after)
    ingest("d", "2.csv", contract=contract, settings=ws)
    version = versions.dataset("d", settings=ws)
    table = version.scan().collect()
    assert cut_in and version.version == 1 + there
    assert table["k"].sort().to_list() == [k for k in range(0 if there else 500, 1600) if k % 100]
    assert (
        version.facts["digest"] == content_digest(table) and version.facts["rows"] == table.height
    )
    assert version.profile().rows == version.counts["train"]
    if there:
        assert version.parent.parent.version == 0


def test_the_newest_version_is_the_greatest_however_late_another_was_recorded(ws, monkeypatch):
    from mlops_nb.data import versions

    with monkeypatch.context() as killed:  # after their commits
        killed.setattr(steps, "record_version", lambda *args, **named: None)
        killed.setattr(steps, "newest_version", lambda *args, **named: None)
        for i in (0, 1):
            ingest("d", put(ws, f"{i}.csv", **rows_for(i * 5, 5)), key="k", settings=ws)
    (newer, facts), (older, earlier) = versions.committed(ws.table("d"))
    versions.record_version("d", newer, facts, settings=ws)
    versions.record_version("d", older, earlier, settings=ws)
    assert versions.dataset("d", settings=ws).version == newer == 1
    assert versions.recorded("d", settings=ws)["subject"].to_list() == ["d@0", "d@1"]


def test_every_version_that_was_killed_before_its_event_is_recorded_by_the_next_ingest(
    ws, monkeypatch
):
    with monkeypatch.context() as killed:
        killed.setattr(steps, "record_version", lambda *args, **named: None)
        killed.setattr(steps, "newest_version", lambda *args, **named: None)
        for i in (0, 1):
            ingest("d", put(ws, f"{i}.csv", **rows_for(i * 5, 5)), key="k", settings=ws)
    last = ingest("d", put(ws, "2.csv", **rows_for(10, 5)), settings=ws)
    assert [last.version, last.parent.version, last.parent.parent.version] == [2, 1, 0]


# --- on the cluster -------------------------------------------------------------------------------


def test_many_files_on_ray_are_what_they_are_here(workspace, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(6):
        pl.DataFrame(rows_for(i * 900, 1000)).write_csv(folder / f"{i}.csv")
    contract = Contract(
        columns={"k": Column(dtype="integer"), "v": Column(dtype="integer", min=0)},
        key="k",
        max_rejected=0.2,
    )
    here = ingest("here", str(folder), contract=contract, settings=workspace)
    monkeypatch.setattr("mlops_nb.data.batches.CLUSTER_BYTES", 0)
    there = ingest("here2", str(folder), contract=contract, settings=workspace)
    same = ("read", "accepted", "rejected", "rows")
    assert [there.facts[f] for f in same] == [here.facts[f] for f in same]
    assert rows_of(there) == rows_of(here)
    monkeypatch.setattr("mlops_nb.data.batches.CLUSTER_BYTES", 0)
    (folder / "7.csv").write_text("k,w\n1,2\n")
    (folder / "8.csv").write_text("k,v\n9000,9000\n")
    with pytest.raises(DataError, match="new column w"):
        ingest("here2", str(folder), contract=contract, settings=workspace)
