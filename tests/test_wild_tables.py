"Tables as they come: exports that lose rows, row numbers, repeated rows, money that is text."

import json
import warnings
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mlops_nb.core import events, lake
from mlops_nb.core.errors import DataError
from mlops_nb.core.settings import create
from mlops_nb.data import dropping, versions
from mlops_nb.data import ingest as steps
from mlops_nb.data.contracts import Column, Contract
from mlops_nb.data.dropping import drop_dataset
from mlops_nb.data.ingest import ingest
from mlops_nb.data.number_formats import EXAMPLE_NUMBERS, parse_formatted
from mlops_nb.data.profiles import store
from mlops_nb.data.splits import Splitting, content_digest, split_hash
from mlops_nb.data.versions import dataset, quarantine
from mlops_nb.flow.dropping import drop, trained_models
from mlops_nb.flow.lineage import trace
from mlops_nb.flow.lineage_graph import as_text
from mlops_nb.front.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def ws(tmp_path):
    return create(tmp_path / "ws")


def text(ws, name, content):
    path = ws.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return name


def members(ws, ids, name="m.csv", fee=1):
    return text(ws, name, "id,fee\n" + "".join(f"{i},{int(i) * fee}\n" for i in ids))


def ids_of(version):
    return sorted(version.scan().collect()["id"].to_list())


def files_of(table):
    return {path.name for path in Path(table).glob("*.parquet")}


# --- full exports ---------------------------------------------------------------------------------


def test_rows_that_a_source_no_longer_has_are_counted_and_stay(ws):
    ingest("m", members(ws, range(100)), key="id", settings=ws)
    with pytest.warns(UserWarning, match="25 rows are no longer in the source and stayed"):
        version = ingest("m", members(ws, range(75), fee=2), settings=ws)
    assert (version.facts["missing"], version.facts["replaced"]) == (25, 75)
    assert ids_of(version) == list(range(100))
    event = events.newest(ws.events, "ingested", version.ref)
    assert event["details"]["missing"] == 25
    assert "25 rows are no longer" in version._repr_html_()


def test_a_full_export_removes_rows_and_earlier_versions_keep_them(ws):
    first = ingest("m", members(ws, range(100)), key="id", settings=ws)
    second = ingest("m", members(ws, range(75), fee=2), complete=True, settings=ws)
    facts = second.facts
    assert (facts["removed"], facts["replaced"], facts["rows"]) == (25, 75, 75)
    assert ids_of(first) == list(range(100)) and ids_of(second) == list(range(75))
    assert facts["digest"] == content_digest(second.scan().collect())
    assert second.profile().rows == second.counts["train"]
    changes = first.diff(second)
    assert (changes.removed, changes.changed, changes.added) == (25, 74, 0)
    assert "removed: 25" in as_text(trace(second.ref, settings=ws))


def test_a_full_export_is_idempotent_and_knows_an_earlier_ingest_without_complete(ws):
    ingest("m", members(ws, range(10)), key="id", settings=ws)
    kept = ingest("m", members(ws, range(8)), settings=ws)
    without = ingest("m", "m.csv", complete=True, settings=ws)
    assert (kept.facts["missing"], without.facts["removed"]) == (2, 2)
    assert ingest("m", "m.csv", complete=True, settings=ws).ref == without.ref
    assert ingest("m", "m.csv", settings=ws).ref == without.ref


def test_a_full_export_under_another_name_removes_rows_of_the_first(ws):
    ingest("m", members(ws, range(10), "january.csv"), key="id", settings=ws)
    later = ingest("m", members(ws, range(1, 12), "february.csv"), complete=True, settings=ws)
    assert ids_of(later) == list(range(1, 12)) and later.facts["removed"] == 1
    back = ingest("m", "january.csv", complete=True, settings=ws)
    assert ids_of(back) == list(range(10)) and back.facts["removed"] == 2


def test_the_parts_of_a_full_export_count_together(ws):
    members(ws, range(5), "in/1.csv")
    members(ws, range(5, 10), "in/2.csv")
    first = ingest("m", "in", key="id", complete=True, settings=ws)
    members(ws, range(5, 9), "in/2.csv")
    second = ingest("m", "in", complete=True, settings=ws)
    assert ids_of(first) == list(range(10)) and ids_of(second) == list(range(9))
    (ws.root / "in/2.csv").unlink()
    third = ingest("m", "in#complete=true", settings=ws)
    assert ids_of(third) == list(range(5)) and third.facts["removed"] == 4


def test_a_row_that_breaks_the_contract_is_not_absent(ws):
    contract = Contract(
        columns={"id": Column(dtype="integer"), "fee": Column(dtype="integer", min=0)},
        key="id",
        max_rejected=0.5,
    )
    ingest("m", members(ws, range(10)), contract=contract, settings=ws)
    content = "id,fee\n0,-1\n1,ten\n2,5\n2,6\n" + "".join(f"{i},7\n" for i in range(3, 9))
    version = ingest("m", text(ws, "m.csv", content), complete=True, settings=ws)
    assert version.facts["rejected"] == 4 and version.facts["removed"] == 1
    assert ids_of(version) == list(range(9))
    fees = dict(version.scan().select("id", "fee").collect().iter_rows())
    assert (fees[0], fees[1], fees[2], fees[3]) == (0, 1, 2, 7)


def test_a_full_export_counts_more_than_the_time_of_its_rows(ws):
    def put(day, fee, ids):
        rows = "".join(f"{i},2024-05-{day:02d},{fee}\n" for i in ids)
        return text(ws, "t.csv", "id,day,fee\n" + rows)

    ingest("m", put(9, 1, range(4)), key="id", time="day", settings=ws)
    version = ingest("m", put(2, 5, range(4)), complete=True, settings=ws)
    assert version.scan().collect()["fee"].to_list() == [5] * 4 and version.facts["late"] == 0


@pytest.mark.parametrize(
    ("source", "key", "message"),
    [
        ("m.csv", None, "complete=True needs a key"),
        ("sqlite:///d.db#table=t&watermark=id", "id", "cannot be a full export"),
        ("empty.csv", "id", "has no rows, and complete=True would remove all"),
        ("few.csv", "id", "more than the 50% that the contract allows"),
    ],
)
def test_a_full_export_is_refused_where_it_has_no_meaning(ws, source, key, message):
    import sqlite3

    with sqlite3.connect(ws.root / "d.db") as database:
        database.execute("CREATE TABLE t (id INTEGER, fee INTEGER)")
        database.execute("INSERT INTO t VALUES (1, 2)")
    members(ws, range(10))
    text(ws, "empty.csv", "id,fee\n")
    members(ws, range(3), "few.csv")
    version = ingest("m", "m.csv", key=key, settings=ws)
    before = files_of(version.table)
    with pytest.raises(DataError, match=message):
        ingest("m", source, complete=True, settings=ws)
    assert versions.newest_version("m", settings=ws).ref == version.ref
    assert files_of(version.table) == before


def test_a_full_export_that_is_killed_after_its_commit_is_recorded_later(ws, monkeypatch):
    ingest("m", members(ws, range(10)), key="id", settings=ws)
    members(ws, range(8))
    with monkeypatch.context() as patch:
        patch.setattr(steps, "record_version", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest("m", "m.csv", complete=True, settings=ws)
    version = ingest("m", "m.csv", complete=True, settings=ws)
    assert version.ref == "m@1" and version.facts["removed"] == 2
    assert [e["subject"] for e in events.list_events(ws.events, kind="ingested")] == ["m@0", "m@1"]


def test_a_full_export_decides_again_when_another_ingest_was_first(ws, monkeypatch):
    ingest("m", members(ws, range(10)), key="id", settings=ws)
    members(ws, [20, 21], "more.csv")
    members(ws, range(8), "all.csv")
    plain = steps._planned_change
    rivals = iter([True])

    def with_rival(*args, **kwargs):
        change = plain(*args, **kwargs)
        if next(rivals, False):
            ingest("m", "more.csv", settings=ws)
        return change

    monkeypatch.setattr(steps, "_planned_change", with_rival)
    version = ingest("m", "all.csv", complete=True, settings=ws)
    assert version.ref == "m@2" and ids_of(version) == list(range(8))
    assert version.facts["removed"] == 4
    assert version.facts["digest"] == content_digest(version.scan().collect())


# --- drop -----------------------------------------------------------------------------------------


def dropped(ws):
    "A dataset of two versions with a quarantined row, and the event that dropped it."
    contract = Contract(
        columns={"id": Column(dtype="integer"), "fee": Column(dtype="integer")},
        key="id",
        max_rejected=0.5,
    )
    source = text(ws, "m.csv", "id,fee\n1,10\n2,x\n3,30\n")
    ingest("m", source, contract=contract, settings=ws)
    ingest("m", members(ws, [4, 5], "more.csv"), settings=ws)
    return contract, drop_dataset("m", by="ann", note="asked to", settings=ws)


def test_a_dropped_dataset_is_gone_from_disk_and_on_record(ws):
    _, event = dropped(ws)
    assert event["details"]["versions"] == ["m@0", "m@1"] and event["by"] == "ann"
    assert not files_of(ws.table("m")) and not files_of(ws.table("m__quarantine"))
    assert store.stored_profiles(ws).collect().is_empty()
    assert quarantine("m", settings=ws).collect().is_empty()
    for ref in ("m", "m@0", "m@1"):
        with pytest.raises(DataError, match=rf"{ref} was dropped by ann on .* \(asked to\)"):
            dataset(ref, settings=ws)


def test_the_numbers_of_a_dropped_dataset_never_mean_other_rows(ws):
    contract, _ = dropped(ws)
    again = ingest("m", "m.csv", contract=contract, settings=ws)
    assert again.version > 1 and again.facts["parent"] is None and ids_of(again) == [1, 3]
    assert quarantine("m", settings=ws).collect().height == 1
    assert dataset("m", settings=ws).ref == again.ref
    with pytest.raises(DataError, match="m@0 was dropped"):
        dataset("m@0", settings=ws)
    second = drop_dataset("m", by="bob", settings=ws)
    assert second["details"]["versions"] == [again.ref]
    with pytest.raises(DataError, match="m@1 was dropped by ann"):
        dataset("m@1", settings=ws)
    with pytest.raises(DataError, match=f"{again.ref} was dropped by bob"):
        dataset(again.ref, settings=ws)
    assert events.list_events(ws.events, "dataset:m", "dropped")[-1]["id"] == second["id"]


def test_dropping_twice_is_dropping_once(ws):
    _, event = dropped(ws)
    assert drop_dataset("m", by="bob", settings=ws)["id"] == event["id"]
    with pytest.raises(DataError, match="no dataset other"):
        drop_dataset("other", by="bob", settings=ws)


@pytest.mark.parametrize("step", ["record_drop", "_remove_traces"])
def test_a_drop_that_was_killed_is_finished_by_the_next(ws, monkeypatch, step):
    ingest("m", members(ws, range(5)), key="id", settings=ws)
    with monkeypatch.context() as patch:
        patch.setattr(dropping, step, lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drop_dataset("m", by="ann", settings=ws)
    event = drop_dataset("m", by="bob", settings=ws)
    assert event["by"] == "ann" and not files_of(ws.table("m"))


def test_an_ingest_after_a_killed_drop_records_it(ws, monkeypatch):
    ingest("m", members(ws, range(5)), key="id", settings=ws)
    with monkeypatch.context() as patch:
        patch.setattr(dropping, "record_drop", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drop_dataset("m", by="ann", settings=ws)
    version = ingest("m", "m.csv", key="id", settings=ws)
    assert version.facts["parent"] is None
    with pytest.raises(DataError, match="m@0 was dropped by ann"):
        dataset("m@0", settings=ws)


def test_an_ingest_during_a_drop_begins_a_new_dataset(ws, monkeypatch):
    ingest("m", members(ws, range(5)), key="id", settings=ws)
    members(ws, [3, 4, 5], "more.csv")
    plain = steps._planned_change
    rivals = iter([True])

    def with_rival(*args, **kwargs):
        change = plain(*args, **kwargs)
        if next(rivals, False):
            drop_dataset("m", by="ann", settings=ws)
        return change

    monkeypatch.setattr(steps, "_planned_change", with_rival)
    version = ingest("m", "more.csv", settings=ws)
    assert ids_of(version) == [3, 4, 5] and version.facts["parent"] is None
    assert version.facts["digest"] == content_digest(version.scan().collect())
    assert ids_of(dataset("m", settings=ws)) == [3, 4, 5]


def test_a_dataset_of_a_serving_model_needs_a_reason(ws):
    data = ingest("m", members(ws, range(5)), key="id", settings=ws)
    log = ws.events
    for number in ("1", "2"):
        events.record(log, "registered", f"churn/{number}", by="ann", dataset={"ref": data.ref})
    events.record(log, "deployed", "churn", by="ann", versions={"2": 100})
    assert trained_models("m", settings=ws) == {"churn/1": False, "churn/2": True}
    command = ["drop", "dataset:m", "--by", "ann", "-w", str(ws.root), "--yes", "--json"]
    refused = CliRunner().invoke(app, command)
    assert "churn/2 of production was trained on m" in str(refused.exception)
    refused = CliRunner().invoke(app, [*command, "--force"])
    assert "note" in str(refused.exception) and data.scan().collect().height == 5
    done = CliRunner().invoke(app, [*command, "--force", "--note", "law"])
    assert json.loads(done.output)["models"] == ["churn/1", "churn/2"]
    assert "dropped: by ann on" in as_text(trace(data.ref, settings=ws))


def test_a_dataset_is_dropped_as_a_whole(ws):
    ingest("m", members(ws, range(5)), key="id", settings=ws)
    for ref in ("m@0", "dataset:m@0", "churn/1", "run:m"):
        with pytest.raises(DataError, match="dropped as a whole"):
            drop(ref, by="ann", settings=ws)


# --- repeated rows --------------------------------------------------------------------------------


def test_repeats_are_counted_before_the_commit_and_a_contract_may_refuse_them(ws):
    rows = [(i, i % 40, i % 7) for i in range(400)]
    source = text(ws, "d.csv", "id,a,b\n" + "".join("{},{},{}\n".format(*row) for row in rows))
    with pytest.warns(UserWarning, match="repeat a row of train in all columns but id: keep them"):
        version = ingest("d", source, key="id", settings=ws)
    table = version.scan().collect()
    content = table.select("a", "b")
    trained = table.filter(pl.col("_split") == "train").select("a", "b").unique()
    tested = table.filter(pl.col("_split") == "test").join(trained, on=["a", "b"], how="semi")
    repeats = version.facts["repeats"]
    assert repeats["rows"] == content.height - content.n_unique()
    assert repeats["across"] == {"test": tested.height}
    strict = version.contract.model_copy(update={"max_repeated": 0.01})
    with pytest.raises(DataError, match=r"more than the 1.00% .*max_repeated.*Nothing was written"):
        ingest("d2", source, contract=strict, settings=ws)
    assert not lake.table_exists(ws.table("d2")) and not files_of(ws.table("d2"))


def test_rows_rejected_for_their_key_are_no_repeats(ws):
    content = "id,a,b\n1,5,6\n1,5,6\n2,7,8\n2,7,9\n3,1,1\n"
    contract = Contract(
        columns=dict.fromkeys(["id", "a", "b"], Column(dtype="integer")), key="id", max_rejected=0.9
    )
    version = ingest("d", text(ws, "d.csv", content), contract=contract, settings=ws)
    assert version.facts["repeats"]["rows"] == 0 and version.facts["rows"] == 2
    assert version.facts["broken"] == {"id must be unique: another row of this ingest has it": 3}


def test_a_row_that_breaks_two_rules_is_explained_when_too_many_do(ws):
    contract = Contract(
        columns={"a": Column(dtype="integer", min=0), "b": Column(dtype="integer", max=1)}
    )
    with pytest.raises(DataError, match="a must be at least 0.*; b must be at most 1.*2 rows"):
        ingest("d", text(ws, "d.csv", "a,b\n-1,2\n-2,3\n"), contract=contract, settings=ws)


def test_equal_rows_share_a_split_across_deliveries_and_types(ws):
    first = text(ws, "1.csv", "n,m\n" + "".join(f"{i},{i % 5}\n" for i in range(200)))
    equal = pl.DataFrame({"m": [i % 5 for i in range(200)], "n": [float(i) for i in range(200)]})
    other = pl.DataFrame({"m": [0] * 300, "n": [i + 0.5 for i in range(300)]})
    pl.concat([equal, other]).with_columns(more=pl.lit(None, pl.String)).write_parquet(
        ws.root / "2.parquet"
    )
    version = ingest("d", first, settings=ws)
    evolving = version.contract.model_copy(update={"on_change": "evolve"})
    ingest("d", first, contract=evolving, settings=ws)
    whole = ingest("d", "2.parquet", settings=ws)
    table = whole.scan().collect()
    assert whole.contract.columns["n"].dtype == "float" and table.height == 700
    splits = table.filter(pl.col("more").is_null()).group_by("n", "m").agg("_split")
    assert splits["_split"].list.n_unique().max() == 1


value = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(value, st.sampled_from([0.0, -0.0, 1.5, float("nan"), None])), min_size=1)
)
def test_the_split_of_a_whole_row_does_not_depend_on_types_or_order(rows):
    frame = pl.DataFrame(rows, schema={"n": pl.Int64, "x": pl.Float64}, orient="row")
    exact = frame["n"].is_null() | (frame["n"].cast(pl.Int128).abs() <= 2**53)
    frame = frame.filter(exact)
    other = frame.select(
        pl.col("x").fill_nan(None) + 0.0, pl.col("n").cast(pl.Float64), more=pl.lit(None)
    )
    assert split_hash(frame, "d", None).equals(split_hash(other, "d", None))


def test_datasets_of_earlier_releases_keep_their_splits():
    frame = pl.DataFrame({"n": [1, 2], "v": ["a", None]})
    old = Splitting(**{"salt": "d", "shares": {"train": 0.5, "test": 0.5}})
    assert not old.alike
    numbers = [9998027147682803609, 16864586115872802649]
    assert split_hash(frame, "d", None, alike=False).to_list() == numbers
    by_number = ["train" if number < 2**63 else "test" for number in numbers]
    assert old.assign(frame).to_list() == by_number


# --- row numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "numbers", "index"),
    [
        ("", range(50), "Unnamed: 0"),
        ('""', range(1, 51), "Unnamed: 0"),
        ("", range(7, 350, 7), "Unnamed: 0"),
        ("Unnamed: 0", range(50), "Unnamed: 0"),
        ("rownames", range(1, 51), "rownames"),
        ("index", range(50), "index"),
        ("rownames", range(100, 150), None),
        ("index", [0] * 50, None),
        ("Unnamed: 0", [3] * 50, None),
        ("number", range(50), None),
    ],
)
def test_a_column_of_row_numbers_is_bookkeeping(ws, header, numbers, index):
    rows = "".join(f"{n},{i % 3},{i % 2}\n" for i, n in enumerate(numbers))
    version = ingest("d", text(ws, "d.csv", f"{header},a,b\n{rows}"), settings=ws)
    assert version.contract.index == index
    stored = version.scan(origin=True).collect()
    assert ("_row" in stored.columns) == (index is not None)
    if index:
        assert version.scan().collect().columns == ["a", "b", "_split"]
        assert sorted(stored["_row"]) == sorted(numbers)
        assert stored.group_by("a", "b").agg(pl.col("_split").n_unique())["_split"].max() == 1
        assert any(f"'{index}' numbers the rows" in note for note in version.notes)
        assert version.facts["digest"] == content_digest(version.scan().collect())
        assert set(version.profile().summary()["column"]) == {"a", "b"}


def test_an_unnamed_column_of_words_is_still_refused(ws):
    with pytest.raises(DataError, match="columns without a name"):
        ingest("d", text(ws, "d.csv", ",a\nx,1\ny,2\n"), settings=ws)


def test_a_key_is_no_row_number_and_later_files_go_on_counting(ws):
    def rows(start):
        return "".join(f"{i},{i * 2}\n" for i in range(start, start + 20))

    keyed = ingest("k", text(ws, "k.csv", "rownames,a\n" + rows(1)), key="rownames", settings=ws)
    assert keyed.contract.index is None
    ingest("d", text(ws, "in/1.csv", "rownames,a\n" + rows(1)), settings=ws)
    version = ingest("d", text(ws, "in/2.csv", "rownames,a\n" + rows(21)), settings=ws)
    assert sorted(version.scan(origin=True).collect()["_row"]) == list(range(1, 41))
    plain = ingest("d", text(ws, "in/3.csv", "a\n5\n"), settings=ws)
    assert plain.scan(origin=True).collect()["_row"].null_count() == 1


def test_row_numbers_may_come_later_and_wrong_ones_are_set_aside(ws):
    first = ingest(
        "d", text(ws, "1.csv", "a\n" + "".join(f"{i}\n" for i in range(30))), settings=ws
    )
    more = "".join(f"{i},{i + 30}\n" for i in range(30))
    second = ingest("d", text(ws, "2.csv", ",a\n" + more), settings=ws)
    assert first.contract.index is None and second.contract.index == "Unnamed: 0"
    table = second.scan(origin=True).collect()
    assert table.height == 60 and table["_row"].null_count() == 30
    rows = "".join(f"{i},{i}\n" for i in range(60, 90))
    third = ingest("d", text(ws, "3.csv", f"Unnamed: 0,a\n{rows}Total,99\n"), settings=ws)
    assert third.facts["rejected"] == 1 and third.facts["rows"] == 90
    assert "_row must be an integer" in quarantine("d", settings=ws).collect()["reason"][0]


# --- text that looks like something ---------------------------------------------------------------


def written(ws, values, name="d.csv"):
    rows = "".join(f'{i},"{value}"\n' for i, value in enumerate(values))
    return text(ws, name, f"id,v\n{rows}")


@pytest.mark.parametrize(
    ("values", "kind", "form", "first"),
    [
        (["$1,234.50", "$7", "-$3.25"] * 10, "float", "$1,234.5", 1234.5),
        (["1.234,50 €", "7,10 €"] * 10, "float", "1.234,5 €", 1234.5),
        (["CHF 1'234.50", "CHF 7.00"] * 10, "float", "CHF 1'234.5", 1234.5),
        (["12 %", "7 %", "n/a"] * 10, "integer", "1234.5 %", 12),
        (["1,234,567", "1,000"] * 10, "integer", "1,234.5", 1234567),
        (["12.5 kg", "7 kg"] * 10, "float", "1234.5 kg", 12.5),
        (["Dec 31, 2024", "Jan 3, 2025"] * 10, "date", "%b %d, %Y", "2024-12-31"),
        (["31/12/24", "03/01/25"] * 10, "date", "%d/%m/%y", "2024-12-31"),
        (["12/31/2024 1:30 PM"] * 20, "datetime", "%m/%d/%Y %I:%M %p", "2024-12-31 13:30:00"),
    ],
)
def test_text_that_looks_like_a_value_is_said_and_the_remedy_works(ws, values, kind, form, first):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        version = ingest("d", written(ws, values), key="id", settings=ws)
    line = f'Column(dtype="{kind}", format="{form}")'
    assert line in version.notes[0] and any(line in str(w.message) for w in caught)
    columns = {**version.contract.columns, "v": Column(dtype=kind, format=form, nullable=True)}
    contract = version.contract.model_copy(update={"columns": columns, "max_rejected": 0.5})
    read = ingest("d", "d.csv", contract=contract, settings=ws)
    assert str(read.scan().sort("id").collect()["v"][0]) == str(first)
    assert read.facts["accepted"] == sum(v != "n/a" for v in values) and not read.notes


@pytest.mark.parametrize(
    "values",
    [["A12", "B7", "C99"], ["0044", "0123"], ["yes", "no"], ["12A", "7B", "9C"], ["v1.2", "v1.3"]],
)
def test_codes_and_words_look_like_nothing(ws, values):
    version = ingest("d", written(ws, values * 10), key="id", settings=ws)
    assert not any("looks like" in note for note in version.notes)


def test_two_readings_are_both_named(ws):
    version = ingest("d", written(ws, ["$1.234", "$2.500"] * 10), key="id", settings=ws)
    [note] = [note for note in version.notes if "looks like" in note]
    assert 'format="$1,234.5"' in note and 'format="$1.234,5"' in note


def test_a_format_holds_for_parquet_and_later_files(ws):
    contract = Contract(columns={"day": Column(dtype="date", format="%d.%m.%y")}, max_rejected=0.5)
    pl.DataFrame({"day": ["31.12.24", "30.12.24", "x"]}).write_parquet(ws.root / "a.parquet")
    version = ingest("d", "a.parquet", contract=contract, settings=ws)
    later = ingest("d", text(ws, "b.csv", "day\n01.02.25\n02.02.25\n"), settings=ws)
    days = later.scan().collect()["day"].sort().cast(pl.String).to_list()
    assert days == ["2024-12-30", "2024-12-31", "2025-02-01", "2025-02-02"]
    assert version.facts["broken"] == {"day must be written as %d.%m.%y": 1}


@pytest.mark.parametrize("number", EXAMPLE_NUMBERS)
def test_every_way_to_write_a_number_reads_itself(number):
    example = pl.Series([number, f"-{number}", "12", "1,2,3", "", "1 2"])
    values = parse_formatted(example, f"€ {number} each").to_list()
    assert values == [None] * 6
    plain = parse_formatted(example, number).to_list()
    assert plain[:3] == ["1234.5", "-1234.5", "12"] and plain[3:] == [None] * 3


def test_the_digest_of_a_contract_is_what_it_was_before_it_had_formats():
    contract = Contract(columns={"id": Column(dtype="integer")}, key="id")
    fields = contract.model_dump()
    assert not {"index", "max_repeated", "max_removed"} & fields.keys()
    assert "format" not in fields["columns"]["id"]
    assert contract.digest == "5a04411487f9c90a"
