"A first look at a table: what it says holds for all rows, and an ingest agrees with it."

import gzip
import sqlite3

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import DataError
from mlops_nb.core.settings import create
from mlops_nb.data.ingest import ingest
from mlops_nb.data.sources import Source
from mlops_nb.front.starter.scans import RowSample
from mlops_nb.front.starter.tables import look
from mlops_nb.front.starter.tallies import stands_in_blocks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def ws(tmp_path):
    return create(tmp_path / "ws")


@pytest.fixture
def put(tmp_path):
    "Write a file beside the test; return its look."

    def write(content, name="t.csv", options="", **arguments):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return look(name + options, root=tmp_path, **arguments)

    return write


def ingested(table, ws):
    "Return the version that an ingest of the table's address under its contract makes."
    source = str(table.root.resolve() / table.address)
    return ingest("t", source, contract=table.contract, settings=ws)


def agree(table, ws):
    "Assert that an ingest rejects no row, and finds the values that the look counted."
    version = ingested(table, ws)
    assert (version.facts["rejected"], version.facts["read"]) == (0, table.rows)
    rows = version.scan().collect()
    for name, column in table.columns.items():
        if name == table.row_number:
            continue
        assert rows[name].null_count() == column.missing, name
        if column.distinct is not None:
            assert rows[name].drop_nulls().n_unique() == column.distinct, name
        if name in table.counts and column.distinct:
            counts = rows[name].drop_nulls().cast(pl.String).value_counts(name="its rows")
            assert dict(counts.iter_rows()) == table.counts[name], name
        expected = pl.String() if column.dtype == pl.Null else column.dtype
        assert rows.schema[name] == expected, name
        if column.dtype != pl.Null:
            assert table.sample.schema[name] == column.dtype, name


def words(table, name):
    return table.columns[name].read_as


# --- what an ingest says of the same file ------------------------------

WARTS = {
    "null words": "a,b,c\n1,x,NA\nNA,null,2.5\n-,y,?\n4,,NaN\n",
    "blanks": "id, x ,y\n1, 2 ,a \n2, ,b\n3, 4,  \n",
    "quoted empties": 'a,b\n"","x"\n"y",""\n',
    "two date orders": "d,e\n31/01/2023,01/31/2023\n01/02/2023,02/25/2023\n",
    "open dates": "d,e\n01/02/2023,1\nNA,2\n03/04/2023,3\n",
    "two-digit years": "d\n31/12/24\n01/02/24\n",
    "named months": 'd\n"Jan 5, 2024"\nNA\n"Mar 31, 2024"\n',
    "times": "d\n2024-01-01 10:00:00\n2024-01-02 11:30:00.5\n-\n",
    "money": 'fee,pct,w\n"$1,234.50",12 %,70 kg\n$5.00,3.5 %,NA\n-,7 %,81.5 kg\n',
    "decimal commas": "a;b;d\n1,5;x;01.02.2023\n2.002,25;y;13.02.2023\n",
    "leading zeros": "zip,b\n01234,1\n12345,2\n",
    "huge integers": "a,b\n99999999999999999999,1\n99999999999999999998,2\n",
    "integers as floats": "a\n1\n2.0\n3\n",
    "byte order mark": "\ufeffid,x\n1,2\n2,3\n",
    "line in quotes": 'a,b\n1,"two\nlines"\n2,"x"\n',
    "no values": "a,b,c\n1,,NA\n2,,NA\n",
    "one column": "a\n1\n2\n3\n",
    "one row": "a,b\n1,x\n",
    "booleans": "t,u\ntrue,True\nfalse,\nNA,False\n",
    "codes": "country,x\nUS,1\nDE,2\nNA,3\nFR,NA\n",
    "row numbers": "rownames,a\n1,x\n2,x\n3,y\n",
    "index of pandas": ",a\n17,x\n3,y\n5,x\n",
    "none of three": "a,b\nnone,1\nsome,2\nall,3\n",
    "only a word": "a,b\nNone,1\nNone,2\n",
    "zeros and ones": "a,b\n0,1.0\n1,0.0\n1,NA\n",
}


@pytest.mark.parametrize("content", WARTS.values(), ids=WARTS)
def test_an_ingest_reads_what_the_look_has_read(put, ws, content):
    agree(put(content), ws)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
def test_any_mixture_of_spellings_is_read_as_an_ingest_reads_it(tmp_path_factory, data):
    spellings = ["1", "2", "1.0", "2.5", "01", "NA", "-", "", " ", "x", "true", "2024-01-05"]
    spellings += ["05/06/2024", "31/01/2024", "$5", "1e3", "nan", "null", "?", "+4", "NA "]
    some = data.draw(st.lists(st.sampled_from(spellings), min_size=1, max_size=4))
    column = st.lists(st.sampled_from(some), min_size=3, max_size=12)
    values = data.draw(column)
    folder = tmp_path_factory.mktemp("any")
    lines = ["id,v", *(f"r{i},{value}" for i, value in enumerate(values))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    agree(look("t.csv", root=folder), create(folder / "ws"))


# --- words for "no value" ------------------------------


def test_words_are_written_into_the_address_and_counted_by_column(put):
    table = put("n,t\n1,NA\nNA,b\n-,c\n4,-\n5,NA\n6,d\n7,e\n8,f\n")
    assert table.address == "t.csv#null_values=-,NA"
    assert table.columns["n"].null_words == {"NA": 1, "-": 1}
    assert table.columns["t"].null_words == {"NA": 2, "-": 1}
    assert (table.columns["n"].missing, table.columns["t"].missing) == (2, 3)


def test_a_doubtful_word_is_a_value_of_a_column_of_text(put):
    table = put("dish,grade\nnone,-\nsoup,A\nsalad,B\n")
    assert table.address == "t.csv"
    assert table.counts == {
        "dish": {"none": 1, "salad": 1, "soup": 1},
        "grade": {"-": 1, "A": 1, "B": 1},
    }


def test_na_among_codes_is_a_question(put):
    table = put("country,x\nUS,1\nDE,2\nNA,3\n")
    assert table.columns["country"].question == ("null_values=", "null_values=NA")
    assert table.columns["country"].missing == 0
    needed = put("country,x\nUS,1\nDE,2\nNA,3\nFR,NA\n")
    assert needed.columns["country"].question == ("null_values=NA", "null_values=")
    assert needed.columns["country"].null_words == {"NA": 1}
    answered = put("country,x\nUS,1\nDE,2\nNA,3\n", options="#null_values=NA")
    assert not answered.columns["country"].question
    assert answered.columns["country"].missing == 1


def test_words_that_the_address_names_are_the_only_ones(put):
    table = put("n\n1\nNA\n-\n", options="#null_values=NA")
    assert table.address == "t.csv#null_values=NA"
    assert table.columns["n"].dtype == pl.String and table.columns["n"].missing == 1


def test_a_word_that_comes_late_is_a_word(put):
    lines = ["n,t", *(f"{i},note {i}" for i in range(30_000)), "NA,NA"]
    table = put("\n".join(lines) + "\n")
    assert table.columns["n"].null_words == table.columns["t"].null_words == {"NA": 1}
    assert (words(table, "n"), words(table, "t")) == ("integer", "text")
    assert table.columns["n"].distinct is None and not table.columns["n"].is_unique


# --- types from all rows ------------------------------


def test_one_word_far_down_makes_text_and_is_named(put, ws):
    lines = ["id,n", *(f"{i},{i * 3}" for i in range(120_000)), "120000,abc"]
    table = put("\n".join(lines) + "\n")
    assert words(table, "n") == "text: 1 of 120,001 is not a number, such as 'abc'"
    assert words(table, "id") == "integer"
    agree(table, ws)


def test_one_fraction_far_down_makes_floats(put, ws):
    lines = ["n", *(str(i) for i in range(120_000)), "7.5"]
    table = put("\n".join(lines) + "\n")
    assert table.columns["n"].dtype == pl.Float64
    agree(table, ws)


def test_one_leading_zero_far_down_makes_text(put, ws):
    lines = ["zip", *(str(i) for i in range(10_000, 130_000)), "01234"]
    table = put("\n".join(lines) + "\n")
    assert table.columns["zip"].dtype == pl.String
    agree(table, ws)


def test_a_day_beyond_the_twelfth_decides_however_late(put, ws):
    lines = ["d", *(f"0{1 + i % 9}/0{1 + i % 8}/2024" for i in range(50_000)), "31/01/2024"]
    table = put("\n".join(lines) + "\n")
    assert table.contract.formats == {"d": "%d/%m/%Y"}
    agree(table, ws)


def test_two_readings_are_a_question_and_an_option_answers_it(put, ws):
    content = "d,x\n01/02/2023,NA\n03/04/2023,5\n"
    table = put(content)
    column = table.columns["d"]
    assert column.question == ("date_format=%d/%m/%Y", "date_format=%m/%d/%Y")
    assert column.dtype == pl.String and column.read_as == "text: date %d/%m/%Y or date %m/%d/%Y"
    answered = put(content, options=f"#{column.question[1]}")
    assert answered.address == "t.csv#date_format=%m/%d/%Y&null_values=NA"
    assert answered.sample["d"][0].month == 1 and not answered.columns["d"].question
    agree(answered, ws)


def test_a_comma_between_digits_is_a_question(put):
    content = "a;b\n1,234;x\n2,345;y\n"
    assert put(content).columns["a"].question == ("decimal_comma=false", "decimal_comma=true")
    assert put(content, options="#decimal_comma=false").sample["a"].to_list() == [1234, 2345]
    assert put(content, options="#decimal_comma=true").sample["a"].to_list() == [1.234, 2.345]


def test_text_says_why_it_is_text(put):
    table = put("a,b,c,d\n99999999999999999999,01,yes,x\n99999999999999999998,2,no,y\n")
    assert [words(table, name) for name in "abcd"] == [
        "text: whole numbers of more than 64 bits, such as '99999999999999999998'",
        "text: a number would lose the beginning of '01'",
        "yes/no text",
        "text",
    ]


# --- all rows ------------------------------


def test_keys_and_repeated_rows_are_found_across_batches_and_files(tmp_path):
    (tmp_path / "in").mkdir()
    for number in (1, 2):
        rows = [f"{number * 200_000 - i},{i % 7}" for i in range(120_000)]
        (tmp_path / f"in/{number}.csv").write_text("id,v\n" + "\n".join(rows) + "\n")
    table = look("in", root=tmp_path)
    assert (table.rows, table.duplicates, len(table.files)) == (240_000, 0, 2)
    assert table.columns["id"].is_unique and not table.columns["v"].is_unique
    with (tmp_path / "in/2.csv").open("a") as file:
        file.write("200000,0\n")
    again = look("in", root=tmp_path)
    assert again.duplicates == 1 and not again.columns["id"].is_unique
    assert again.fingerprint != table.fingerprint
    assert again.fingerprint == Source("in", tmp_path).fingerprint()


def test_a_row_number_is_left_out_of_duplicates_and_sample(put):
    table = put(",a\n0,x\n1,x\n2,y\n")
    assert (table.row_number, table.duplicates) == ("Unnamed: 0", 1)
    assert table.sample.columns == ["a"] and table.contract.index == "Unnamed: 0"
    assert words(table, "Unnamed: 0") == "row number"
    gaps = put("rownames,a\n1,x\n3,x\n4,y\n")
    assert gaps.row_number is None and gaps.duplicates == 0
    assert gaps.columns["rownames"].is_unique


def test_the_sample_comes_from_the_whole_file_in_its_order(put):
    table = put("i\n" + "\n".join(map(str, range(100_000))) + "\n", sample=1000)
    values = table.sample["i"]
    assert len(values) == 1000 and values.is_sorted()
    tenths = (values // 10_000).value_counts()["count"]
    assert len(tenths) == 10 and tenths.min() > 60
    again = put("i\n" + "\n".join(map(str, range(100_000))) + "\n", sample=1000)
    assert again.sample.equals(table.sample)


def test_the_sample_does_not_depend_on_the_batches():
    frame = pl.DataFrame({"i": range(5000)})
    one, many = RowSample(300, 1), RowSample(300, 1)
    one.add(frame)
    for part in frame.iter_slices(70):
        many.add(part)
    assert one.rows().equals(many.rows())


def test_every_row_has_the_same_chance_to_be_in_the_sample():
    hits = np.zeros(60)
    for seed in range(2000):
        sample = RowSample(6, seed)
        for first in range(0, 60, 7):
            sample.add(pl.DataFrame({"i": range(first, min(60, first + 7))}))
        hits[sample.rows()["i"].to_numpy()] += 1
    assert hits.sum() == 12_000 and hits.min() > 145 and hits.max() < 260  # mean 200, 4 sd


# --- sorted files ------------------------------


def changes_of(values):
    return int((values[1:] != values[:-1]).sum())


def test_random_order_is_hardly_ever_called_sorted():
    random = np.random.default_rng(0)
    wrong = 0
    for sizes in ([3, 3, 3, 3], [27, 3], [10, 10], [95, 5], [500, 15], [6] * 20, [997, 3]):
        values = np.repeat(np.arange(len(sizes)), sizes)
        for _ in range(3000):
            wrong += stands_in_blocks(changes_of(random.permutation(values)), sizes)
    assert wrong <= 2  # of 21,000: less than one in 10,000


def test_a_sorted_file_stays_sorted_with_a_few_rows_appended(put):
    classes = ["a"] * 60 + ["b"] * 50 + ["c"] * 40
    table = put("y,z\n" + "".join(f"{c},{i % 3}\n" for i, c in enumerate(classes)))
    assert table.sorted_by == ("y",)
    more = put("y,z\n" + "".join(f"{c},{i % 3}\n" for i, c in enumerate([*classes, *"abca"])))
    assert more.sorted_by == ("y",)


# --- every kind of source ------------------------------

FRAME = pl.DataFrame(
    {
        "id": range(50),
        "fee": [i / 4 if i % 7 else None for i in range(50)],
        "city": ["Basel", "Bern", None, "NA", "Chur"] * 10,
        "day": pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 2, 19), eager=True),
        "paid": [True, False] * 25,
    }
)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.ndjson"])
def test_sources_with_types_keep_them(tmp_path, ws, name):
    writers = {"parquet": FRAME.write_parquet, "arrow": FRAME.write_ipc}
    writers.get(name.partition(".")[2], FRAME.write_ndjson)(tmp_path / name)
    table = look(name, root=tmp_path)
    assert table.address == name and {n: c.dtype for n, c in table.columns.items()} == FRAME.schema
    assert table.sample.equals(FRAME) and table.counts["city"]["NA"] == 10
    assert table.columns["fee"].missing == 8 and table.columns["id"].is_unique
    agree(table, ws)


@pytest.mark.parametrize("name", ["t.tsv", "t.csv.gz", "t.csv.zst"])
def test_text_files_of_every_ending_are_read(tmp_path, ws, name):
    separator = "\t" if name == "t.tsv" else ","
    text = FRAME.write_csv(separator=separator)
    if name.endswith("gz"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    elif name.endswith("zst"):
        FRAME.write_csv(tmp_path / name, compression="zstd")
    else:
        (tmp_path / name).write_text(text)
    table = look(name, root=tmp_path)
    assert table.address == f"{name}#null_values=NA" and table.columns["city"].missing == 20
    agree(table, ws)


def test_a_delta_table_and_a_database_are_read(tmp_path, ws):
    FRAME.write_delta(tmp_path / "lake")
    table = look("lake", root=tmp_path)
    assert table.rows == 50 and table.files == () and table.columns["day"].dtype == pl.Date
    agree(table, ws)
    with sqlite3.connect(tmp_path / "d.db") as database:
        database.execute("create table t (id integer, day text, fee real, note text)")
        rows = [(i, f"2024-01-{1 + i % 31:02d}", i / 2, f"n{i}") for i in range(40)]
        database.executemany("insert into t values (?, ?, ?, ?)", rows)
    looked = look("sqlite:///d.db#table=t", root=tmp_path)
    assert looked.size is None and looked.files == () and looked.columns["id"].is_unique


# --- what cannot be read ------------------------------

BROKEN = {
    "latin-1": ("n.csv", "name\nZoë\n".encode("latin-1"), "--source 'n.csv#encoding=latin-1'"),
    "cp1252": ("n.csv", "name\n“Zoë”\n".encode("cp1252"), "--source 'n.csv#encoding=cp1252'"),
    "two separators": ("s.csv", b"a;b,c\n1;2,3\n", "--source 's.csv#separator=comma'"),
    "a title": ("r.csv", b"Report,,\nid,x,y\n1,2,3\n", "tail -n +2 r.csv > r.table.csv &&"),
    "a spreadsheet": ("x.xlsx", b"PK", "save the sheet as CSV"),
    "no rows": ("e.csv", b"a,b\n", "has a header and no rows"),
    "empty": ("e.csv", b"", "is empty"),
    "same names": ("d.csv", b"a,a\n1,2\n", "columns of the same name"),
}


@pytest.mark.parametrize(("name", "content", "advice"), BROKEN.values(), ids=BROKEN)
def test_a_source_that_cannot_be_read_says_what_to_type(put, name, content, advice):
    with pytest.raises(DataError, match="(?s).+") as caught:
        put(content, name)
    assert advice in str(caught.value)


def test_the_remedy_of_an_encoding_works(put):
    content = "name,x\nZoë,1\nJosé,2\n".encode("latin-1")
    table = put(content, options="#encoding=latin-1")
    assert table.counts["name"] == {"José": 1, "Zoë": 1}


def test_files_with_other_columns_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "in/2.csv").write_text("a,c\n1,2\n")
    with pytest.raises(DataError, match="missing column b; new column c"):
        look("in", root=tmp_path)


def test_a_missing_file_suggests_the_one_that_is_there(put):
    put("a\n1\n", "orders.csv")
    with pytest.raises(DataError, match="Try: mlops-nb init DIR --source .*orders.csv"):
        put("a\n1\n", "other.csv") and look("order.csv", root=put("a\n1\n").root)


def test_a_table_is_shown_with_its_columns(put):
    html = put("id,n\n1,NA\n2,5\n")._repr_html_()
    assert "t.csv#null_values=NA" in html and "all different" in html and "&#39;NA&#39;: 1" in html
