"Sources that are broken, far away, changing or large: what `data.sources` promises of each."

import bz2
import gzip
import lzma
import pickle
import re
import sqlite3
import string
import subprocess
import sys
import zipfile
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal

import obstore
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import DataError, Unparsable
from mlops_nb.data.sources import Source, databases, storage


def write(folder, name: str, content: str | bytes):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only(folder, uri: str, **options):
    (part,) = Source(uri, folder, options).parts()
    return part


def rows(part, dtypes=None, **options) -> pl.DataFrame:
    return pl.concat(part.batches(dtypes, **options))


# Text, as it is written

SHOP = "id,day,amount\n1,2024-05-01,2.5\n2,,\n"


def zipped(content: bytes, path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.csv", content)
    return path.read_bytes()


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zip"])
def test_compressed_text_is_read_and_leaves_nothing(tmp_path, packing, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zip": lambda c: zipped(c, tmp_path / "x.zip"),
    }[packing]
    write(tmp_path, f"a.csv{packing}", pack(SHOP.encode()))
    assert rows(only(tmp_path, f"a.csv{packing}")).rows() == [
        (1, date(2024, 5, 1), 2.5),
        (2, None, None),
    ]
    assert not list((tmp_path / "scratch").iterdir())
    stopped = only(tmp_path, f"a.csv{packing}").batches(rows=1)
    next(stopped)
    stopped.close()
    assert not list((tmp_path / "scratch").iterdir())


def test_zstandard(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow

    with pyarrow.output_stream(str(tmp_path / "a.csv.zst"), compression="zstd") as file:
        file.write(SHOP.encode())
    assert rows(only(tmp_path, "a.csv.zst")).height == 2


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, code):
    write(tmp_path, "a.csv", "größe,n\nklein,1\n".encode(code))
    assert rows(only(tmp_path, "a.csv")).to_dicts() == [{"größe": "klein", "n": 1}]


def test_another_encoding_is_said(tmp_path):
    write(tmp_path, "a.csv", "größe\nüber\n".encode("latin-1"))
    with pytest.raises(DataError, match="set encoding=…"):
        only(tmp_path, "a.csv").schema()
    assert rows(only(tmp_path, "a.csv#encoding=latin-1")).to_dicts() == [{"größe": "über"}]
    with pytest.raises(DataError, match="encoding=klingon is not known"):
        only(tmp_path, "a.csv", encoding="klingon").schema()


def test_text_that_stops_being_utf_8_after_the_sample(tmp_path):
    write(tmp_path, "a.csv", b"a,b\n" + b"1,x\n" * 400_000 + "2,ü\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 throughout"):
        rows(only(tmp_path, "a.csv"))


@pytest.mark.parametrize(
    "text, options, values",
    [
        ("a;b\n1,5;x\n2,25;y\n", {}, [1.5, 2.25]),
        ("a;b\n1.234,5;x\n", {}, [1234.5]),
        ("a;b\n1.234;x\n", {}, [1.234]),  # nothing speaks for a decimal comma
        ("a;b\n1.234;x\n", {"decimal_comma": True}, [1234.0]),
        ("a;b\n1,234;x\n", {}, ["1,234"]),  # undecided: text
        ("a;b\n1,234;x\n", {"decimal_comma": True}, [1.234]),
        ("a\n31/12/2024\n", {}, [date(2024, 12, 31)]),
        ("a\n12/31/2024\n", {}, [date(2024, 12, 31)]),
        ("a\n05/04/2024\n", {}, ["05/04/2024"]),
        ("a\n05/04/2024\n", {"date_format": "%d/%m/%Y"}, [date(2024, 4, 5)]),
        ("a\n2024-01-01T10:00:00+02:00\n", {}, [datetime(2024, 1, 1, 8)]),
        ("a\n2024-01-01 10:00\n", {}, [datetime(2024, 1, 1, 10)]),
        ("a\n007\n", {}, ["007"]),
        ("a\n99999999999999999999\n", {}, ["99999999999999999999"]),
        ("a\n+4915112345678\n4915112345679\n", {}, ["+4915112345678", "4915112345679"]),
        (
            "a\n9007199254740993\n0.5\n",
            {},
            ["9007199254740993", "0.5"],
        ),  # no float is the first one
        ("a\n9007199254740992\n0.5\n", {}, [9007199254740992.0, 0.5]),
        ("a\n1e400\n1\n", {}, ["1e400", "1"]),
        ("a\n31/12/2023\n31/12/24\n", {}, ["31/12/2023", "31/12/24"]),
        ("a\n31/12/2023 10:00\n31/12/24 10:00\n", {}, ["31/12/2023 10:00", "31/12/24 10:00"]),
        ("a\n24-12-31\n", {}, ["24-12-31"]),
        ("a\n31/12/24\n", {"date_format": "%d/%m/%y"}, [date(2024, 12, 31)]),
        ("a\n2024-05-01T10:00:00.123456789\n", {}, ["2024-05-01T10:00:00.123456789"]),
        (
            "a\n2024-05-01T10:00:00.123456000\n2024-05-01T10:00:00\n",
            {},
            [datetime(2024, 5, 1, 10, 0, 0, 123456), datetime(2024, 5, 1, 10)],
        ),
        ("a\n7\nNaN\n", {}, [7, None]),
        ("a\n  7\n 12\n5 \n", {}, [7, 12, 5]),
        ("a\nTRUE\nfalse\n", {}, [True, False]),
        ("a\nNA\n3\n", {"null_values": "NA,-"}, [None, 3]),
        ("7\n8\n", {"header": False}, [7, 8]),
        ("a\r1\r2\r", {}, [1, 2]),
        ("a\n1\n\n2\n", {}, [1, None, 2]),  # one column: a blank line is a missing value
        ("a,b\n1,2\n\n\n", {}, [1]),  # blank lines at the end are no rows
        ('a,b\n"x\ny","1,2"\n', {}, ["x\ny"]),
    ],
)
def test_what_is_written_is_what_is_read(tmp_path, text, options, values):
    write(tmp_path, "a.csv", text)
    assert rows(only(tmp_path, "a.csv", **options))[:, 0].to_list() == values


@pytest.mark.parametrize(
    "text, dtype, setting",
    [
        ("a\n05/04/2024\n", pl.Date(), "set date_format=%d/%m/%Y or date_format=%m/%d/%Y"),
        ("a;b\n1,234;x\n", pl.Float64(), "set decimal_comma=true or"),
    ],
)
def test_what_is_undecided_asks_for_the_setting_that_decides(tmp_path, text, dtype, setting):
    write(tmp_path, "a.csv", text)
    with pytest.raises(DataError, match=setting):
        rows(only(tmp_path, "a.csv"), {"a": dtype})


# Text, as it should not be


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "is empty"),
        ("a,b\n", "no rows"),
        ("a,b", "no rows"),
        ("\n\n", "is empty"),
        (b"a,b\n1,\0\0\n", "NUL bytes"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "NUL bytes"),
        (b"\xff\xd8\xff\xe0", "set encoding"),
        ("a,b,a\n1,2,3\n", "same name"),
        ("a,,c\n1,2,3\n", "without a name"),
        (",".join(f"c{i}" for i in range(10_000)) + "\n" + "1," * 9_999 + "1\n", "10,000 columns"),
        ("a,b\n1,2\n1,2,3\n", "row 2 of a.csv has 3 fields, expected 2"),
        ("a,b\n1,2\n1\n", "row 2 of a.csv has 1 field"),
        ("a,b\n1,2\n\n3,4\n", "a blank line"),
        ("a,b;c\n1,2;3\n", "comma or semicolon"),
    ],
)
def test_bad_text_is_refused_with_a_reason(tmp_path, content, said):
    write(tmp_path, "a.csv", content)
    with pytest.raises(DataError, match=said):
        rows(only(tmp_path, "a.csv"))
    with pytest.raises(DataError, match=said):
        only(tmp_path, "a.csv").schema()


def test_a_separator_that_does_not_occur(tmp_path):
    write(tmp_path, "a.csv", SHOP)
    with pytest.raises(DataError, match="it seems to be comma"):
        only(tmp_path, "a.csv#separator=;").schema()


LONG = "a,b\n" + "1,2\n" * 300_000  # more than the sample


@pytest.mark.parametrize(
    "line, error, said",
    [
        ("1.5,2\n", Unparsable, "column 'a' has '1.5', expected integer"),
        ("x,2\n", Unparsable, "column 'a' has 'x'"),
        ("99999999999999999999,2\n", Unparsable, "column 'a' has '9999"),
        ("1,2,3\n", DataError, "line 300,002 of a.csv has 3 fields, expected 2"),
        ("1\n", DataError, "line 300,002 of a.csv has 1 field, expected 2"),
        ("\n1,2\n", DataError, "line 300,002 of a.csv has 1 field"),
        ('1,"x\n', DataError, "a.csv has a quote that is not closed"),
    ],
)
def test_what_goes_wrong_after_the_sample_is_named(tmp_path, line, error, said):
    write(tmp_path, "a.csv", LONG + line)
    with pytest.raises(error, match=said):
        rows(only(tmp_path, "a.csv"), rows=50_000)


@pytest.mark.parametrize(
    "text, value",
    [
        ("a;b\n" + "1,5;x\n" * 200_000 + "1.5;x\n", "1.5"),
        ("a,b\n" + "2024-05-01,x\n" * 100_000 + "01/05/2024,x\n", "01/05/2024"),
    ],
)
def test_what_is_parsed_from_text_is_held_to_its_form(tmp_path, text, value):
    write(tmp_path, "a.csv", text)
    with pytest.raises(Unparsable, match=f"column 'a' has '{value}'"):
        rows(only(tmp_path, "a.csv"))
    part = only(tmp_path, "a.csv")
    cast = part.typed(rows(part, text=True), part.schema())
    assert cast["a"].null_count() == 1 and cast["a"][-1] is None


@pytest.mark.parametrize(
    "first, late",
    [
        ("10001", "01234"),
        ("4915", "+4915"),
        ("1.5", "007.5"),
        ("1.5", "9007199254740993"),
        ("1", "99999999999999999999"),
        ("1.5", "1e400"),
        ("31/12/2023", "31/12/24"),
        ("31/12/2023 10:00", "31/12/24 10:00"),
        ("2023-12-31", "23-12-31"),
        ("2024-05-01T10:00:00.5", "2024-05-01T10:00:00.123456789"),
        ("2024-05-01", "0000-00-00"),
        ("2024-05-01 10:00:00", "2024-05-01 23:59:60"),
        ("2024-05-01T10:00:00Z", "2024-05-01T23:59:60Z"),
        ("2024-05-01T10:00:00.5", "2024-05-01T23:59:60.5"),
    ],
)
def test_a_value_after_the_sample_is_never_changed(tmp_path, first, late):
    write(tmp_path, "a.csv", "a,b\n" + f"{first},x\n" * 12_000 + f"{late},x\n")
    part = only(tmp_path, "a.csv")
    with pytest.raises(Unparsable, match=re.escape(f"column 'a' has '{late}'")):
        rows(part)
    spelled = rows(part, text=True)
    assert spelled["a"][-1] == late and part.typed(spelled, part.schema())["a"][-1] is None


def test_a_decimal_comma_does_not_hide_a_code(tmp_path):
    write(tmp_path, "a.csv", "a;b\n" + "1,5;x\n" * 12_000 + "007,5;x\n")
    with pytest.raises(Unparsable, match="column 'a' has '007,5'"):
        rows(only(tmp_path, "a.csv"))


def test_half_a_surrogate_pair_of_json_lines_is_refused_and_a_whole_one_read(tmp_path):
    write(tmp_path, "a.ndjson", r'{"a": "\ud83d\ude00", "b": "C:\\udata"}' "\n")
    assert rows(only(tmp_path, "a.ndjson")).rows() == [("\U0001f600", "C:\\udata")]
    write(tmp_path, "b.ndjson", '{"a": "x"}\n' * 12_000 + r'{"a": "\ud83d\ude00\ud800"}' "\n")
    with pytest.raises(
        DataError, match=r"line 12,001 of .*b.ndjson has \\ud800, half of a surrogate"
    ):
        rows(only(tmp_path, "b.ndjson"))


def test_large_numbers_of_json_lines_are_never_changed(tmp_path):
    write(tmp_path, "a.ndjson", '{"a": 9007199254740993}\n{"a": 1.5}\n')
    with pytest.raises(Unparsable, match="column 'a' has '9007199254740993', expected number"):
        rows(only(tmp_path, "a.ndjson"))
    write(tmp_path, "b.ndjson", '{"a": 99999999999999999999}\n{"a": 1}\n')
    assert rows(only(tmp_path, "b.ndjson"))["a"].to_list() == ["99999999999999999999", "1"]


@pytest.mark.parametrize(
    "values, dtype, want, as_wanted",
    [
        ([1, 1000], pl.Datetime("ns"), pl.Datetime("us"), None),
        (
            [1000, 2000],
            pl.Datetime("ns", "Europe/Berlin"),
            pl.Datetime("us"),
            [datetime(1970, 1, 1, 0, 0, 0, 1), datetime(1970, 1, 1, 0, 0, 0, 2)],
        ),
        ([2**64 - 1, 5], pl.UInt64, pl.Int64(), None),
        ([2**53 + 1, 5], pl.Int64, pl.Float64(), None),
        ([2**53, 5], pl.Int64, pl.Float64(), [2.0**53, 5.0]),
        ([Decimal(10**19), Decimal(3)], pl.Decimal(38, 0), pl.Int64(), None),
        ([Decimal("12345678901234567.89")], pl.Decimal(38, 2), pl.Float64(), None),
        ([Decimal("0.30"), Decimal("12.5")], pl.Decimal(38, 2), pl.Float64(), [0.3, 12.5]),
        ([3.0, float("nan")], pl.Float64, pl.Int64(), [3, None]),
        ([3.5], pl.Float64, pl.Int64(), None),
        ([None, None], pl.Null, pl.Date(), [None, None]),
    ],
)
def test_typed_values_keep_their_value_or_are_an_error(tmp_path, values, dtype, want, as_wanted):
    stored = pl.Int64 if isinstance(dtype, pl.Datetime) else dtype
    pl.DataFrame({"a": pl.Series(values, dtype=stored).cast(dtype)}).write_parquet(
        tmp_path / "a.parquet"
    )
    part = only(tmp_path, "a.parquet")
    if as_wanted is None:
        with pytest.raises(Unparsable, match="column 'a' has"):
            rows(part, {"a": want})
    else:
        assert rows(part, {"a": want})["a"].to_list() == as_wanted


def test_short_lines_are_told_from_missing_values_and_from_quoted_lines(tmp_path):
    write(tmp_path, "a.csv", 'a,b\n' + '1,\n"x\n\n,,,\ny","p,q"\n' * 100_000)
    assert rows(only(tmp_path, "a.csv")).height == 200_000
    write(tmp_path, "a.csv", 'a,b\n' + '1,\n"x\n\n,,,\ny","p,q"\n' * 100_000 + '2\n')
    with pytest.raises(DataError, match="line 500,002 of a.csv has 1 field"):
        rows(only(tmp_path, "a.csv"))


def test_json_lines(tmp_path):
    write(
        tmp_path, "a.ndjson", '{"a": 1, "at": "2024-05-01"}\n' * 300 + '{"a": 1.5, "b": "late"}\n'
    )
    part = only(tmp_path, "a.ndjson")
    assert part.schema() == {
        "a": pl.Float64,
        "at": pl.Date,
        "b": pl.String,
    }  # of all lines, not of the first ones
    assert rows(part)["b"].drop_nulls().to_list() == ["late"]
    with pytest.raises(Unparsable, match="column 'a' has '1.5', expected integer"):
        rows(part, {"a": pl.Int64()})
    assert rows(part, text=True).schema == dict.fromkeys(["a", "at", "b"], pl.String)
    write(tmp_path, "b.ndjson", '{"a": 1}\nnothing\n')
    with pytest.raises(DataError, match="b.ndjson"):
        rows(only(tmp_path, "b.ndjson"))
    write(tmp_path, "c.ndjson", "\n")
    with pytest.raises(DataError, match="no rows"):
        rows(only(tmp_path, "c.ndjson"))


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".ndjson"])
def test_a_file_that_is_not_what_its_ending_says(tmp_path, ending):
    write(tmp_path, f"a{ending}", "a,b\n1,2\n")
    with pytest.raises(DataError, match=f"a{ending}"):
        rows(only(tmp_path, f"a{ending}"))


# Properties

names = st.lists(
    st.text(string.ascii_letters + "äß _#", min_size=1, max_size=8).filter(str.strip),
    min_size=2,
    max_size=5,
    unique=True,
)
values = {
    pl.Int64(): st.integers(-(2**63), 2**63 - 1),
    pl.Float64(): st.floats(allow_nan=False, allow_infinity=False),
    pl.Boolean(): st.booleans(),
    pl.Date(): st.dates(date(1000, 1, 1), date(9999, 12, 31)),
    pl.Datetime("us"): st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31)),
    pl.String(): st.text(
        st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12
    ),
}


@st.composite
def frames(draw) -> pl.DataFrame:
    height = draw(st.integers(1, 20))
    columns = {}
    for name in draw(names):
        dtype = draw(st.sampled_from(list(values)))
        cells = draw(st.lists(st.none() | values[dtype], min_size=height, max_size=height))
        columns[name] = pl.Series(name, cells, dtype)
    return pl.DataFrame(columns)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(frame=frames(), size=st.integers(1, 25))
def test_what_was_written_is_read(tmp_path, frame, size):
    "Through text and typed formats, in batches of any size; text that is converted equals values."
    frame.write_csv(tmp_path / "a.csv", quote_style="always" if len(frame) % 2 else "non_numeric")
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ndjson(tmp_path / "a.ndjson")
    for name in ("a.csv", "a.parquet", "a.ndjson"):
        part = only(tmp_path, f"{name}#separator=," if name == "a.csv" else name)
        batches = list(part.batches(frame.schema, rows=size))
        assert all(b.height <= size for b in batches)
        read = pl.concat(batches).with_columns(pl.col(pl.String).replace("", None))
        assert read.equals(frame), name
        text = pl.concat(part.batches(text=True, rows=size))
        assert (
            part.typed(text, frame.schema)
            .with_columns(pl.col(pl.String).replace("", None))
            .equals(frame)
        ), name


# Files that are missing, several, or change


def test_a_missing_path_says_what_is_near(tmp_path):
    write(tmp_path, "exports/may.csv", SHOP)
    with pytest.raises(DataError, match="no data at .*exprots.* did you mean .*exports"):
        Source("exprots/may.csv", tmp_path).parts()
    with pytest.raises(DataError, match="may.csv"):
        Source("exports/mai.csv", tmp_path).parts()
    with pytest.raises(DataError, match=r"use a pattern such as .*\*\*"):
        Source(".", tmp_path).parts()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected files ending in .csv"):
        Source("empty", tmp_path).parts()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="expected files ending in"):
        Source("folder.csv", tmp_path).parts()


def test_patterns_and_folders(tmp_path):
    for name in ("b/2.csv", "a/1.csv", "a/.hidden.csv", "a/notes.md"):
        write(tmp_path, name, SHOP)
    assert [p.origin for p in Source("**/*.csv", tmp_path).parts()] == ["a/1.csv", "b/2.csv"]
    assert [p.origin for p in Source("a", tmp_path).parts()] == ["a/1.csv"]
    assert Source("**/*.csv", tmp_path).scan().collect().height == 4
    write(tmp_path, "a/3.parquet", "")
    with pytest.raises(DataError, match="several kinds"):
        Source("a", tmp_path).parts()


def test_a_number_sign_in_a_name_is_a_name(tmp_path):
    write(tmp_path, "a#1.csv", SHOP)
    write(tmp_path, "b#header=no.csv", SHOP)
    assert only(tmp_path, "a#1.csv").origin == "a#1.csv"
    assert only(tmp_path, "b#header=no.csv").origin == "b#header=no.csv"
    assert only(tmp_path, "a#1.csv#separator=,").options == {"separator": ","}
    with pytest.raises(DataError, match="did you mean 'separator'"):
        only(tmp_path, "a#1.csv#seperator=,")
    with pytest.raises(DataError, match="no option of files"):
        only(tmp_path, "a#1.csv", table="orders")


def test_state_and_fingerprint_follow_the_bytes(tmp_path):
    write(tmp_path, "a.csv", SHOP)
    write(tmp_path, "b.csv", SHOP)
    source = Source("*.csv", tmp_path)
    state, before = {p.origin: p.state for p in source.parts()}, source.fingerprint()
    assert source.parts(since=state) == [] and source.fingerprint() == before
    (tmp_path / "a.csv").touch()
    assert source.parts(since=state) == [] and source.fingerprint() == before
    write(tmp_path, "b.csv", SHOP.replace("2.5", "3.5"))  # as long as before, and at once
    assert [p.origin for p in source.parts(since=state)] == [
        "b.csv"
    ] and source.fingerprint() != before
    assert source.facts()["a.csv"] == state["a.csv"]["digest"]


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path, "a.csv", LONG)
    reading = only(tmp_path, "a.csv").batches(rows=1000)
    next(reading)
    with path.open("a") as file:
        file.write("1,2\n")
    with pytest.raises(DataError, match="changed while it was being read"):
        list(reading)
    old = only(tmp_path, "a.csv")
    path.unlink()
    with pytest.raises(DataError, match="a.csv"):
        list(old.batches())


def test_parts_travel(tmp_path):
    write(tmp_path, "a.csv", SHOP)
    part = only(tmp_path, "a.csv")
    assert part.schema() == pickle.loads(pickle.dumps(part)).schema()
    assert rows(pickle.loads(pickle.dumps(part))).equals(rows(part))
    assert "a.csv" in Source("a.csv", tmp_path)._repr_html_()


def test_a_large_file_is_read_in_little_memory(tmp_path):
    "A quarter of a gigabyte in batches of 50,000 rows."
    line = "".join(
        f"{n},{n / 7:.12f},2024-05-01T10:00:00,some text of some length {n}\n"
        for n in range(100_000)
    )
    with (tmp_path / "a.csv").open("w") as file:
        file.write("id,x,at,text\n")
        for _ in range(40):
            file.write(line)
    code = f"""
import resource
from mlops_nb.data.sources import Source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
part, = Source({str(tmp_path / 'a.csv')!r}).parts()
assert sum(f.height for f in part.batches(rows=50_000)) == 4_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250  # MiB


# Buckets


def test_a_bucket(s3):
    def put(key, body):
        obstore.put(*storage.bucket_and_key(f"{here}/{key}"), body)

    def origins(pattern):
        return [p.origin.removeprefix(f"{here}/") for p in Source(f"{here}/{pattern}").parts()]

    here = f"{s3.address}/in"
    for key, body in {
        "a.csv": SHOP.encode(),
        "b.csv": SHOP.encode(),
        "deep/c.csv.gz": gzip.compress(SHOP.encode()),
        "d.csv.bz2": bz2.compress(SHOP.encode()),
        "l.txt": "größe;n\nü;1\n".encode("latin-1"),
        "readme.md": b"x",
    }.items():
        put(key, body)
    assert origins("*.csv") == ["a.csv", "b.csv"]
    assert origins("**/*.csv*") == ["a.csv", "b.csv", "d.csv.bz2", "deep/c.csv.gz"]
    assert origins("deep") == ["deep/c.csv.gz"]
    for key in ("a.csv", "d.csv.bz2", "deep/c.csv.gz"):
        (part,) = Source(f"{here}/{key}").parts()
        assert rows(part).rows() == [(1, date(2024, 5, 1), 2.5), (2, None, None)]
        assert part.state["digest"].startswith("etag:")
    assert rows(Source(f"{here}/l.txt#encoding=latin-1").parts()[0]).rows() == [("ü", 1)]
    state = {p.origin: p.state for p in Source(f"{here}/*.csv").parts()}
    put("a.csv", SHOP.replace("1,", "9,").encode())
    assert origins("*.csv") == ["a.csv", "b.csv"]
    (changed,) = Source(f"{here}/*.csv").parts(since=state)
    reading = changed.batches()
    next(reading)
    put("a.csv", SHOP.encode())
    with pytest.raises(DataError, match="changed while"):
        list(reading)
    with pytest.raises(DataError, match=f"no data at {here}/nope.csv"):
        Source(f"{here}/nope.csv").parts()
    with pytest.raises(DataError):
        Source("s3://nobucket/a.csv").parts()


def test_a_table_in_a_bucket(s3):
    pl.DataFrame({"id": [1]}).write_delta(f"{s3.address}/orders")
    (part,) = Source(f"{s3.address}/orders").parts()
    pl.DataFrame({"id": [2]}).write_delta(f"{s3.address}/orders", mode="append")
    (new,) = Source(f"delta:{s3.address}/orders").parts(since={part.origin: part.state})
    assert (rows(part).rows(), rows(new).rows(), new.complete) == ([(1,)], [(2,)], False)


# Databases


def fill(path, *statements: str):
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


def test_sqlite(tmp_path):
    fill(
        tmp_path / "shop.db",
        "CREATE TABLE orders (id INTEGER, at TEXT, paid INTEGER, note TEXT)",
        "INSERT INTO orders VALUES (1, '2024-05-01 10:00:00', 1, NULL), (2, NULL, 0, NULL)",
    )
    part = only(tmp_path, "sqlite:///shop.db#table=orders")
    assert part.schema() == {"id": pl.Int64, "at": pl.String, "paid": pl.Int64, "note": pl.Null}
    dtypes = {"at": pl.Datetime("us"), "paid": pl.Boolean(), "note": pl.String()}
    assert rows(part, dtypes).rows() == [
        (1, datetime(2024, 5, 1, 10), True, None),
        (2, None, False, None),
    ]
    assert (part.origin, part.complete) == ("sqlite:///shop.db#table=orders", True)
    assert (
        Source("sqlite:///shop.db#table=orders", tmp_path).parts(since={part.origin: part.state})
        == []
    )
    fill(tmp_path / "shop.db", "INSERT INTO orders VALUES (3, 'soon', 7, 'x')")
    with pytest.raises(DataError, match="changed while it was being read"):
        rows(part)
    with pytest.raises(Unparsable, match="column 'paid' has '7', expected boolean"):
        rows(only(tmp_path, "sqlite:///shop.db", table="orders"), {"paid": pl.Boolean()})
    query = only(tmp_path, "sqlite:///shop.db", query="SELECT id FROM orders WHERE id > 1;")
    assert rows(query, rows=1).rows() == [(2,), (3,)]
    assert Source("sqlite:///shop.db#table=orders", tmp_path).scan().collect().height == 3


@pytest.mark.parametrize(
    "options, said",
    [
        ("", "needs table=… or query=SELECT …: there is orders"),
        ("#table=order", "did you mean table=orders"),
        ("#table=x&query=y", "expected one of them"),
        ("#table=orders&watermark=at", "no column 'at'.*there is id, amount"),
        ("#table=orders&separator=,", "no option of database"),
        ("#table=orders&watermark=amount", "rows without a amount"),
    ],
)
def test_what_a_database_does_not_have(tmp_path, options, said):
    fill(
        tmp_path / "shop.db",
        "CREATE TABLE orders (id INTEGER, amount REAL)",
        "INSERT INTO orders VALUES (1, NULL)",
    )
    with pytest.raises(DataError, match=said):
        Source(f"sqlite:///shop.db{options}", tmp_path).parts()


def test_a_query_may_not_name_columns_as_patterns(tmp_path):
    fill(tmp_path / "a.db", "CREATE TABLE t (a INTEGER)", "INSERT INTO t VALUES (1)")
    said = r"the table or query has columns '\^a\$': polars reads a name between"
    with pytest.raises(DataError, match=said):
        rows(only(tmp_path, "sqlite:///a.db", query='SELECT a AS "^a$" FROM t'))


def test_a_file_that_is_no_database(tmp_path):
    write(tmp_path, "shop.db", "this is no database at all" * 100)
    with pytest.raises(DataError, match="shop.db"):
        Source("sqlite:///shop.db#table=x", tmp_path).parts()
    with pytest.raises(DataError, match="no database at"):
        Source("sqlite:///no.db#table=x", tmp_path).parts()


@pytest.mark.parametrize(
    "values, later",
    [
        ((1, 2), 3),
        ((0.1, 0.30000000000000004), 0.4),
        (("'2024-05-01'", "'2024-05-02'"), "'2024-05-03'"),
        (("'a''b'", "'b'"), "'c'"),
    ],
)
def test_a_watermark_divides_reads_without_gap_or_overlap(tmp_path, values, later):
    fill(
        tmp_path / "shop.db",
        "CREATE TABLE t (mark, v INTEGER)",
        f"INSERT INTO t VALUES ({values[0]}, 1), ({values[1]}, 2)",
    )
    source = Source("sqlite:///shop.db#table=t&watermark=mark", tmp_path)
    (first,) = source.parts()
    fill(tmp_path / "shop.db", f"INSERT INTO t VALUES ({later}, 3)")  # while it reads
    assert rows(first)["v"].to_list() == [1, 2] and first.complete
    (second,) = source.parts(since={first.origin: first.state})
    assert rows(second)["v"].to_list() == [3] and not second.complete
    assert source.parts(since={second.origin: second.state}) == []


def test_integers_that_a_database_would_round_are_refused(tmp_path):
    fill(
        tmp_path / "shop.db",
        "CREATE TABLE t (id INTEGER, v)",
        "INSERT INTO t VALUES (1, 9007199254740992), (2, 0.5)",
    )
    assert rows(only(tmp_path, "sqlite:///shop.db#table=t"))["v"].to_list() == [2.0**53, 0.5]
    fill(tmp_path / "shop.db", "INSERT INTO t VALUES (3, 9007199254740993)")
    with pytest.raises(
        DataError, match="'v' has fractions, and whole numbers that would be rounded"
    ):
        rows(only(tmp_path, "sqlite:///shop.db#table=t"))


def test_a_table_without_rows_has_nothing_new(tmp_path):
    fill(tmp_path / "shop.db", "CREATE TABLE t (id INTEGER)")
    assert Source("sqlite:///shop.db#table=t&watermark=id", tmp_path).parts() == []
    assert not list(only(tmp_path, "sqlite:///shop.db#table=t").batches())


def test_a_type_that_changes_far_down(tmp_path):
    fill(
        tmp_path / "shop.db",
        "CREATE TABLE t (a)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        "WHERE i < 5000) INSERT INTO t SELECT i FROM n",
        "INSERT INTO t VALUES (1.5)",
    )
    with pytest.raises(Unparsable, match="column 'a'"):
        rows(only(tmp_path, "sqlite:///shop.db#query=SELECT a FROM t&watermark=a"), rows=1000)


def test_another_driver_by_its_name(tmp_path, monkeypatch):
    write(tmp_path, "adbc_driver_shop/__init__.py", "")
    write(
        tmp_path,
        "adbc_driver_shop/dbapi.py",
        "from adbc_driver_sqlite import dbapi\ndef connect(uri):\n"
        "    assert uri == 'shop://me:secret@host'\n"
        f"    return dbapi.connect('file:{tmp_path}/shop.db')\n",
    )
    fill(tmp_path / "shop.db", "CREATE TABLE t (id INTEGER)", "INSERT INTO t VALUES (7)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SHOP_PASSWORD", "secret")
    with pytest.raises(DataError, match="install the one that provides adbc_driver_oracle"):
        Source("oracle://h/x#table=t").parts()
    with closing(
        databases.connect_database("shop://me:$SHOP_PASSWORD@host", tmp_path)
    ) as connection:
        assert pl.concat(databases.query_frames(connection, "SELECT id FROM t")).rows() == [(7,)]


@pytest.fixture
def shop(postgres, monkeypatch):
    "A function that runs SQL in the PostgreSQL server, on a fresh table `orders`."
    from adbc_driver_postgresql import dbapi

    monkeypatch.setenv("SHOP", postgres.partition("://")[2])
    monkeypatch.setenv("SHOP_PASSWORD", "open sesame@1")
    connection = dbapi.connect(postgres, autocommit=True)

    def run(sql: str):
        with connection.cursor() as cursor:
            cursor.execute(sql)

    run("DROP TABLE IF EXISTS orders")
    yield run
    connection.close()


def test_postgresql(shop, postgres):
    shop(
        "CREATE TABLE orders (id bigint, amount numeric(10, 2), at timestamptz, day date, "
        "ok boolean, doc jsonb, raw bytea)"
    )
    shop(
        "INSERT INTO orders VALUES (1, 4.25, '2024-05-01 10:00+02', '2024-05-01', true, "
        "'{\"a\": 1}', '\\x00')"
    )
    address = "postgresql://tester:$SHOP_PASSWORD@" + postgres.rpartition("@")[2]
    for said in ("#table=orders", "#table=orders&watermark=at", "#table=orders&watermark=amount"):
        (part,) = Source(address + said).parts()
        assert part.schema()["amount"] == pl.Float64 and part.schema()["at"] == pl.Datetime(
            "us", "UTC"
        )
        assert rows(part, {"at": pl.Datetime("us")}).row(0)[:6] == (
            1,
            4.25,
            datetime(2024, 5, 1, 8),
            date(2024, 5, 1),
            True,
            '{"a": 1}',
        )
        assert Source(address + said).parts(since={part.origin: part.state}) == []
        assert part.origin == address + "#table=orders"
    shop(
        "INSERT INTO orders VALUES (2, 5, '2024-05-01 10:00:00.000001+02', NULL, NULL, NULL, NULL)"
    )
    (then,) = Source(address + "#table=orders&watermark=at").parts(
        since={part.origin: {"watermark": "2024-05-01T08:00:00+00:00", "type": "datetime"}}
    )
    assert rows(then)["id"].to_list() == [2]
    with pytest.raises(DataError, match="has no table 'nope'"):
        Source(address + "#table=nope").parts()
    with pytest.raises(DataError, match="relation .nope. does not exist"):
        Source(address, options={"query": "SELECT * FROM nope"}).parts()


def test_a_numeric_that_no_float_holds_is_refused(shop, postgres):
    shop("CREATE TABLE orders (id numeric(20))")
    shop("INSERT INTO orders VALUES (9007199254740992), ('NaN'), (NULL)")
    (part,) = Source(postgres + "#table=orders").parts()
    assert rows(part)["id"].to_list() == [2.0**53, None, None]
    shop("INSERT INTO orders VALUES (9007199254740993)")
    with pytest.raises(DataError, match="id has the number 9007199254740993, which a float would"):
        Source(postgres + "#table=orders").parts()


def test_intervals_are_refused(shop, postgres):
    shop("CREATE TABLE orders (id int, took interval)")
    with pytest.raises(DataError, match="columns took are intervals"):
        Source(postgres + "#table=orders").parts()


def test_a_password_is_never_shown(shop, postgres, monkeypatch):
    wrong = postgres.replace("open%20sesame%401", "hunter%202")
    for uri in (
        wrong + "#table=orders",
        postgres.replace("127.0.0.1", "nowhere.invalid") + "#table=orders",
    ):
        source = Source(uri)
        with pytest.raises(DataError, match=r"tester:\*\*\*@.* cannot be reached") as caught:
            source.parts()
        error, chain = caught.value, ""
        while error:
            chain, error = (
                chain + repr(error),
                error.__cause__ or (None if error.__suppress_context__ else error.__context__),
            )
        for secret in ("hunter", "sesame"):
            assert secret not in chain + repr(source) + str(source)
    shop("CREATE TABLE orders AS SELECT 1 AS id")
    (part,) = Source(postgres + "#table=orders").parts()
    assert (
        "sesame" not in repr(part)
        and "***" in part.origin
        and "sesame" not in str(Source(postgres + "#table=orders").facts())
    )
    monkeypatch.delenv("SHOP_PASSWORD")
    with pytest.raises(DataError, match="needs the environment variable SHOP_PASSWORD"):
        Source("postgresql://tester:$SHOP_PASSWORD@127.0.0.1/x#table=t").parts()


def test_a_connection_that_drops_while_it_reads(shop, postgres):
    shop(
        "CREATE TABLE orders AS SELECT i AS id, repeat('x', 200) AS text "
        "FROM generate_series(1, 400000) AS i"
    )
    (part,) = Source(postgres + "#table=orders&watermark=id").parts()
    reading = part.batches(rows=1000)
    next(reading)
    shop(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE query LIKE '%FROM%orders%' AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DataError, match="cannot be read.*Nothing of it counts"):
        list(reading)
    assert sum(f.height for f in part.batches()) == 400_000


# Delta tables


def test_a_table_that_was_tidied_has_nothing_new(tmp_path):
    table = str(tmp_path / "t")
    for n in range(4):
        pl.DataFrame({"id": [n]}).write_delta(table, mode="append")
    source = Source("t", tmp_path)
    (part,) = source.parts()
    DeltaTable(table).optimize.compact()
    assert source.parts(since={part.origin: part.state}) == []
    pl.DataFrame({"id": [9], "new": ["x"]}).write_delta(
        table, mode="append", delta_write_options={"schema_mode": "merge"}
    )
    (new,) = source.parts(since={part.origin: part.state})
    assert rows(new).rows() == [(9, "x")] and not new.complete
    (old,) = Source("t#version=1", tmp_path).parts()
    assert rows(old)["id"].sort().to_list() == [0, 1]
    assert rows(old, {"id": pl.Float64()}).schema == {"id": pl.Float64}


def test_a_file_that_is_gone_from_the_table_means_all_of_it(tmp_path):
    table = str(tmp_path / "t")
    for n in range(3):
        pl.DataFrame({"id": [n]}).write_delta(table, mode="append")
    DeltaTable(table).optimize.compact()
    DeltaTable(table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    (part,) = Source("t", tmp_path).parts(since={"t": {"version": 0}})
    assert part.complete and rows(part).height == 3


def test_stamps_of_files_are_finer_than_their_clock(tmp_path):
    path = write(tmp_path, "a.csv", "a\n1\n")
    assert storage.file_state(str(path), storage.file_stamp(str(path))) != storage.file_state(
        str(write(tmp_path, "a.csv", "a\n2\n")), storage.file_stamp(str(path))
    )
    assert datetime.now(UTC) >= only(tmp_path, "a.csv").modified


@pytest.mark.parametrize(("header", "name"), [('k,"a""b"', 'a"b'), ('"k","""a"""', '"a"')])
def test_quotes_in_the_names_of_columns(tmp_path, header, name):
    write(tmp_path, "a.csv", f"{header}\n1,x\n2,y\n")
    frame = rows(only(tmp_path, "a.csv"))
    assert frame.rows() == [(1, "x"), (2, "y")] and frame.columns == ["k", name]
    assert only(tmp_path, "a.csv").scan().collect().rows() == frame.rows()


def test_a_stray_quote_in_a_header_is_refused(tmp_path):
    "Polars would read all rows as a part of the name."
    write(tmp_path, "a.csv", 'k,a"b\n1,x\n2,y\n')
    for read in (rows, lambda part: part.scan().collect()):
        with pytest.raises(DataError, match="have a quote that is not doubled"):
            read(only(tmp_path, "a.csv"))
