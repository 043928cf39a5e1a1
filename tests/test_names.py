"Names of folders, files, columns, datasets and models: kept, or refused by an error with the name."

import codecs
import gzip
import json
import os
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path

import obstore
import polars as pl
import pytest
from test_workflow import good

from mlops_nb.core import data_files, events, lake, tracking
from mlops_nb.core.errors import DataError, LakeError, ObjectiveError, RegistryError, SettingsError
from mlops_nb.core.errors import InputError as SignatureError
from mlops_nb.core.settings import create, load_settings
from mlops_nb.data import ingest as ingesting
from mlops_nb.data import versions
from mlops_nb.data.contracts import Contract
from mlops_nb.data.ingest import ingest, read_source
from mlops_nb.data.ingest.resplitting import resplit
from mlops_nb.data.sources import Source, files
from mlops_nb.data.sources.connections import connect_database, query_frames
from mlops_nb.data.sources.storage import bucket_and_key
from mlops_nb.models import registry
from mlops_nb.science import objective
from mlops_nb.science.signature import Signature

FOLDERS = ["my project ü#1", "100%", "is it?", "a*b{c}", "k=1&x+y;z"]


def days(folder: Path, number: int, text: str) -> None:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / f"{number}.csv").write_text(text)


def rows(version) -> list[tuple]:
    return version.scan().drop("_split").collect().rows()


# Folders


@pytest.mark.parametrize("name", FOLDERS)
def test_a_workspace_lives_in_a_folder_of_any_name(tmp_path, name):
    workspace = create(tmp_path / name)
    days(workspace.root, 1, "id,v\n1,1.5\n2,2.5\n")
    first = ingest("Kündigungen", "in/*.csv", key="id", settings=workspace)
    days(workspace.root, 2, "id,v\n2,9.5\n3,3.5\n")
    second = ingest("Kündigungen", "in/*.csv", settings=workspace)
    assert sorted(
        rows(versions.dataset("dataset:Kündigungen@1", settings=load_settings(workspace.root)))
    ) == [(1, 1.5), (2, 9.5), (3, 3.5)]
    assert sorted(rows(first)) == [(1, 1.5), (2, 2.5)]
    assert first.diff(second).table.rows() == [
        ("kept", 1),
        ("added", 1),
        ("removed", 0),
        ("changed", 1),
    ]
    assert second.profile().rows == second.counts.get("train", 0)
    assert [c["version"] for c in lake.commits(workspace.table("Kündigungen"))] == [1, 0]
    assert events.history(workspace.events, kind="ingested").collect()["subject"].to_list() == [
        "Kündigungen@0",
        "Kündigungen@1",
    ]
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FOLDERS)
def test_mlflow_keeps_its_database_and_files_in_a_folder_of_any_name(tmp_path, name):
    workspace = create(tmp_path / name)
    (tmp_path / name / "report").mkdir()
    (tmp_path / name / "report" / "r.json").write_text("{}")
    with tracking.start_run(workspace):
        uri = tracking.log_folder(workspace.root / "report", "report", settings=workspace)
    kept = tracking.fetch(uri, settings=workspace)
    assert [p.name for p in kept.iterdir()] == ["r.json"] and kept.is_relative_to(
        workspace.root / "storage" / "artifacts"
    )
    assert (workspace.root / "storage" / "mlflow.db").stat().st_size > 100_000
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["{project} is it? 100%*", "k=1 &x"])
def test_a_workflow_runs_in_a_folder_of_any_name(ray_cluster, tmp_path, name):
    workspace = create(tmp_path / name, workspace={"name": tmp_path.name})
    run = good(workspace.root).run({"rows": 4}, settings=workspace)
    assert [(s.name, s.state) for s in run.stages] == [
        ("make", "done"),
        ("count", "done"),
        ("watch", "done"),
    ]
    assert {Path(s.notebook).parent.parent for s in run.stages} == {Path(workspace.runs)}
    assert all(Path(s.notebook).is_file() for s in run.stages)
    again = good(workspace.root).run({"rows": 4}, settings=workspace)
    assert [s.state for s in again.stages] == ["reused", "reused", "done"]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_that_divides_import_paths_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="':' divides Python's import paths"):
        create(tmp_path / "a:b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, part", [("a%20b", "%20"), ("a[1]", "["), ("a^b", "^"), ("a|b", "|")]
)
def test_a_folder_that_deltalake_misreads_is_refused_before_anything_is_written(
    tmp_path, name, part
):
    with pytest.raises(SettingsError) as e:
        create(tmp_path / name)
    assert (
        f"libraries misread '{part}' in it: rename the folder" in str(e.value)
        and not (tmp_path / name).exists()
    )
    with pytest.raises(LakeError, match="deltalake misreads"):
        lake.append(str(tmp_path / name / "t"), pl.DataFrame({"a": [1]}))
    assert not list(tmp_path.iterdir())
    elsewhere = create(tmp_path / "w")
    (tmp_path / name).mkdir()
    (tmp_path / name / "d.csv").write_text("id\n1\n")
    assert rows(ingest("d", str(tmp_path / name / "*.csv"), settings=elsewhere)) == [(1,)]


def test_in_a_bucket_an_address_may_have_all_but_what_ends_it(tmp_path, s3):
    with pytest.raises(SettingsError, match="misread '#' in it"):
        create(tmp_path / "w", workspace={"storage": f"{s3.address}/team#1"})
    workspace = create(tmp_path / "w", workspace={"storage": f"{s3.address}/my project ü"})
    (workspace.root / "d.csv").write_text("id\n1\n2\n")
    assert sorted(rows(ingest("Kündigungen", "d.csv", key="id", settings=workspace))) == [
        (1,),
        (2,),
    ]
    assert sorted(rows(versions.dataset("Kündigungen", settings=workspace))) == [(1,), (2,)]


@pytest.mark.parametrize("name", ["a b", "ü", "a#1", "a?b", "a[1]", "a*b", "a|b"])
def test_a_table_in_a_bucket_is_read_under_its_own_name(s3, name):
    table = f"{s3.address}/{name}/t"
    assert [lake.append(table, pl.DataFrame({"n": [n]}), key=("k", n)) for n in range(3)] == [
        0,
        1,
        2,
    ]
    assert (
        sorted(lake.scan(table).collect()["n"]) == [0, 1, 2]
        and lake.scan(table, version=0).collect().height == 1
    )
    file = data_files.write_file(table, pl.DataFrame({"n": [7]}), "7.parquet")
    assert data_files.commit_files(table, [file], schema=pl.Schema({"n": pl.Int64}), at=2) == 3
    (part,) = Source(f"delta:{table}").parts()
    assert sorted(pl.concat(part.batches())["n"]) == [0, 1, 2, 7]
    (new,) = Source(f"delta:{table}").parts(since={part.origin: {"version": 2}})
    assert new.scan().collect()["n"].to_list() == [7]


@pytest.mark.parametrize("name", ["my tables ü#1", "100%", "is it?"])
def test_a_delta_source_is_read_in_a_folder_of_any_name(tmp_path, name):
    table = tmp_path / name / "orders"
    place = ["a b", "ü/#", "%20", None]
    frame = pl.DataFrame({"place": place, "n": [1, 2, 3, 4]})
    frame.write_delta(table.as_uri(), delta_write_options={"partition_by": ["place"]})
    (part,) = Source(f"{name}/orders", tmp_path).parts()
    assert pl.concat(part.batches()).sort("n").equals(frame) and part.schema() == frame.schema
    assert Source(table.as_uri(), tmp_path).scan().collect().sort("n").equals(frame)
    pl.DataFrame({"place": ["x=1"], "n": [5]}).write_delta(table.as_uri(), mode="append")
    (new,) = Source(f"{name}/orders", tmp_path).parts(since={part.origin: part.state})
    assert new.scan().collect().rows() == [("x=1", 5)]


def test_an_sqlite_source_is_read_in_a_folder_of_any_name(tmp_path):
    with sqlite3.connect(tmp_path / "a b?ü#1%20.db") as connection:
        connection.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1);")
    assert Source("sqlite:///a b?ü#1%20.db#table=t", tmp_path).scan().collect().rows() == [(1,)]


def test_a_file_address_is_a_path(tmp_path):
    (tmp_path / "my file.csv").write_text("a\n1\n")
    assert Source((tmp_path / "my file.csv").as_uri()).scan().collect().rows() == [(1,)]
    storage = create(
        tmp_path / "w", workspace={"storage": (tmp_path / "my storage").as_uri()}
    ).storage
    assert storage == str(tmp_path / "my storage")


# Files whose names are patterns

WRITERS = {
    ".parquet": pl.DataFrame.write_parquet,
    ".arrow": pl.DataFrame.write_ipc,
    ".csv": pl.DataFrame.write_csv,
    ".jsonl": pl.DataFrame.write_ndjson,
}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(
    "name", ["sales[1]", "sales*", "sales?", "{a,b}", "sales%20", "sales#1", "-x"]
)
def test_a_file_is_itself_whatever_its_name(tmp_path, ending, name):
    for n, stem in enumerate(("sales1", "salesx", "a", name)):
        WRITERS[ending](pl.DataFrame({"id": [n]}), tmp_path / f"{stem}{ending}")
    (part,) = Source(f"{name}{ending}", tmp_path).parts()
    assert pl.concat(part.batches())["id"].to_list() == part.scan().collect()["id"].to_list() == [3]
    assert sorted(Source(f"*{ending}", tmp_path).scan().collect()["id"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("name", ["s[1]", "s*", "s?", "a b", "s#1", "s%20"])
def test_an_object_in_a_bucket_is_itself_whatever_its_name(s3, tmp_path, ending, name):
    for n, stem in enumerate(("s1", "sx", name)):
        WRITERS[ending](pl.DataFrame({"id": [n]}), tmp_path / "one")
        obstore.put(
            *bucket_and_key(f"{s3.address}/in/{stem}{ending}"), (tmp_path / "one").read_bytes()
        )
    (part,) = Source(f"{s3.address}/in/{name}{ending}").parts()
    assert pl.concat(part.batches())["id"].to_list() == part.scan().collect()["id"].to_list() == [2]


def test_a_folder_is_itself_before_it_is_a_pattern(tmp_path):
    for folder, n in (("in[1]", 1), ("in1", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "d.csv").write_text(f"id\n{n}\n")
    assert Source("in[1]/*.csv", tmp_path).scan().collect().rows() == [(1,)]
    assert Source("in?/*.csv", tmp_path).scan().collect().rows() == [(2,)]


# Parts without rows

EMPTY = {"2.csv": b"id,v\n", "3.csv": b"", "4.csv": b"\n\n", "5.csv": codecs.BOM_UTF8}


@pytest.mark.parametrize("name", EMPTY)
def test_a_part_without_rows_is_read_once_and_the_next_is_taken(tmp_path, name):
    workspace = create(tmp_path)
    days(tmp_path, 1, "id,v\n1,1.5\n2,2.5\n")
    first = ingest("d", "in/*.csv", settings=workspace)
    (tmp_path / "in" / name).write_bytes(EMPTY[name])
    again = [ingest("d", "in/*.csv", by="ann", settings=workspace).ref for _ in range(2)]
    assert again == [first.ref] * 2 and lake.table_version(workspace.table("d")) == 0
    (read,) = events.history(workspace.events, kind="read_empty").collect().to_dicts()
    assert (read["subject"], read["by"], list(json.loads(read["details"])["parts"])) == (
        "d",
        "ann",
        [f"in/{name}"],
    )
    days(tmp_path, 6, "id,v\n7,7.5\n")
    assert sorted(rows(ingest("d", "in/*.csv", settings=workspace))) == [
        (1, 1.5),
        (2, 2.5),
        (7, 7.5),
    ]
    (tmp_path / "in" / name).write_text("id,v\n8,8.5\n")
    assert len(rows(ingest("d", "in/*.csv", settings=workspace))) == 4


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl", ".csv.gz"])
def test_an_empty_file_of_each_kind_is_read_once_and_the_next_is_taken(tmp_path, ending):
    workspace = create(tmp_path)

    def write(name, n):
        frame = pl.DataFrame({"id": list(range(n))}, schema={"id": pl.Int64})
        if ending == ".csv.gz":
            (tmp_path / f"{name}{ending}").write_bytes(gzip.compress(frame.write_csv().encode()))
        else:
            WRITERS[ending](frame, tmp_path / f"{name}{ending}")

    write("a", 2)
    ingest("d", f"*{ending}", settings=workspace)
    write("b", 0)
    write("c", 1)
    version = ingest("d", f"*{ending}", settings=workspace)
    assert (version.facts["rows"], sorted(version.facts["parts"])) == (
        3,
        [f"b{ending}", f"c{ending}"],
    )


def test_a_query_without_rows_is_read(tmp_path):
    workspace = create(tmp_path)
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1)")
    address = "sqlite:///shop.db#query=SELECT a FROM t WHERE a > 1"
    with pytest.raises(DataError, match="has no rows: expected at least one"):
        ingest("d", address, settings=workspace)
    connection.execute("INSERT INTO t VALUES (2)")
    connection.commit()
    assert rows(ingest("d", address, settings=workspace)) == [(2,)]
    connection.execute("DELETE FROM t")
    connection.commit()
    assert (
        ingest("d", address, settings=workspace).facts["rows"] == 0
    )  # what the query gave is gone


@pytest.mark.parametrize("name", EMPTY)
def test_a_first_ingest_without_rows_is_one_sentence(tmp_path, name):
    workspace = create(tmp_path)
    (tmp_path / name).write_bytes(EMPTY[name])
    with pytest.raises(DataError, match=f"{name} (is empty|has a header and no rows): expected"):
        ingest("d", name, settings=workspace)
    assert not lake.table_exists(workspace.table("d")) and not lake.table_exists(workspace.events)
    with pytest.raises(DataError, match="has no rows"):
        read_source(name, settings=workspace)


def test_a_file_that_lost_its_rows_takes_them_along(tmp_path):
    workspace = create(tmp_path)
    for number in (1, 2):
        days(tmp_path, number, f"id\n{number}\n")
    ingest("d", "in/*.csv", settings=workspace)
    days(tmp_path, 2, "id\n")
    version = ingest("d", "in/*.csv", settings=workspace)
    assert (version.ref, rows(version), version.facts["replaced"]) == ("d@1", [(1,)], 1)


# Long rows, marks at the beginning, what JSON does not allow


@pytest.mark.parametrize("cell", ["x" * 3_000_000, '"' + "a, b\n" * 500_000 + '"'])
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_first_cell_may_be_longer_than_the_sample(tmp_path, cell, ending):
    text = f"id,doc\n1,{cell}\n2,short\n".encode()
    (tmp_path / f"d.{ending}").write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    rows_read = Source(f"d.{ending}", tmp_path).scan().collect()
    assert rows_read["id"].to_list() == [1, 2] and rows_read["doc"].to_list() == [
        cell.strip('"'),
        "short",
    ]


def test_a_quote_that_is_never_closed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_SAMPLE", 2**20)
    (tmp_path / "d.csv").write_text('id,doc\n1,"' + "x,\n" * 1_000_000)
    with pytest.raises(DataError, match="is a quote not closed there"):
        Source("d.csv", tmp_path).parts()[0].schema()


@pytest.mark.parametrize("code", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, code):
    (tmp_path / "settings.ini").write_text("[workspace]\nname = Bücher\n", encoding=code)
    workspace = load_settings(tmp_path)
    assert workspace.workspace.name == "Bücher"
    (tmp_path / "a.csv").write_text("id,Wort\n1,ü\n", encoding=code)
    (tmp_path / "a.jsonl").write_text(
        '{"id": 1, "Wort": "ü"}\n{"id": 2, "Wort": null}\n', encoding=code
    )
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress("id,Wort\n1,ü\n".encode(code)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress('{"id": 1, "Wort": "ü"}\n'.encode(code)))
    for name in ("a.csv", "a.jsonl", "b.csv.gz", "b.jsonl.gz"):
        rows_read = Source(name, tmp_path).scan().collect()
        assert rows_read.columns == ["id", "Wort"] and rows_read.row(0) == (1, "ü"), name


@pytest.mark.parametrize(
    "line, says",
    [
        (
            '{"id": 3, "x": NaN}',
            "line 4 of d.jsonl is not JSON: NaN is not a value in JSON, write null in its place",
        ),
        ('{"id": 3, "x": -Infinity}', "line 4 of d.jsonl is not JSON: -Infinity is not a value"),
        ('{"id": 3, "x": }', "line 4 of d.jsonl is not JSON: Expecting value at character 16"),
    ],
)
def test_what_json_does_not_allow_is_named_with_its_line(tmp_path, line, says):
    workspace = create(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"id": 1, "x": 1.5}\n\n{"id": 2, "x": null}\n' + line + "\n")
    with pytest.raises(DataError, match=says):
        ingest("d", "d.jsonl", settings=workspace)
    assert not lake.table_exists(workspace.table("d"))


# Columns

ODD = [
    "*",
    "a$",
    "^b",
    "a.b",
    "a b",
    "[x]",
    "{k}",
    'q"q',
    "a/b",
    "a|b",
    "a,b",
    "_row",
    "_hash",
    "_file",
    "_key",
    "é",
    "e\u0301",
    "column_1",
    "key",
    "time",
]


@pytest.mark.parametrize("key", ["id", "*", None])
def test_columns_keep_their_names(tmp_path, key):
    workspace, n = create(tmp_path), 60
    frame = pl.DataFrame(
        {
            "id": list(range(n)),
            **{c: [i + j + 0.5 * (c == "_row") for i in range(n)] for j, c in enumerate(ODD)},
        }
    )
    frame.write_parquet(tmp_path / "1.parquet")
    first = ingest("d", "1.parquet", key=key, settings=workspace)
    assert first.scan().drop("_split").collect().sort("id").equals(frame)
    assert set(first.profile().columns) == set(frame.columns)
    changed = frame.with_columns(pl.Series("a$", [99.0] * 10 + frame["a$"].to_list()[10:]))
    pl.concat([changed, changed.tail(1)]).write_parquet(tmp_path / "2.parquet")
    second = ingest("d", "2.parquet", settings=workspace)
    assert (second.facts["replaced"], second.facts["rejected"]) == ((n, 1) if key else (0, 0))
    difference = first.diff(second)
    assert difference.changed == (10 if key else 0)
    if key:
        assert (
            difference.examples["column"].unique().to_list() == ["a$"]
            and difference.examples.height == 10
        )
    assert second.balance("*").table.height and second.leakage(group="*").table.height
    wrong = changed.with_columns(pl.Series("_row", [-5.0] + changed["_row"].to_list()[1:]))
    wrong.write_parquet(tmp_path / "3.parquet")
    third = ingest("d", "3.parquet", settings=workspace)
    assert third.facts["rejected"] == 1
    aside = (
        versions.quarantine("d", settings=workspace).filter(pl.col("rules") == "_row|min").collect()
    )
    assert [json.loads(row)["*"] for row in aside["row"]] == [0.0]


def test_a_value_that_is_not_of_its_type_is_quarantined_in_odd_columns(tmp_path):
    workspace = create(tmp_path)
    text = "".join(f"{n},{n},{n}\n" for n in range(50))
    (tmp_path / "1.csv").write_text("*,a b,z\n" + text)
    ingest("d", "1.csv", key="*", settings=workspace)
    (tmp_path / "2.csv").write_text("*,a b,z\n" + text.replace("7,7,7", "7,oops,7") + "x,1,1\n")
    version = ingest("d", "2.csv", settings=workspace)
    assert (version.facts["rows"], version.facts["rejected"]) == (50, 2)
    assert sorted(versions.quarantine("d", settings=workspace).collect()["rules"]) == [
        "*|dtype",
        "a b|dtype",
    ]


@pytest.mark.parametrize(
    "columns, says",
    [
        (["id", "ID"], "columns id and ID differ only in case"),
        (["ä", "Ä"], "columns ä and Ä differ only in case"),
        (["id", "^a.*$"], "columns '\\^a.\\*\\$'.* polars reads a name between"),
        (["id", "_split"], "column _split: a dataset has its own of that name"),
        (["id", "_Source"], "column _Source: a dataset has its own of that name"),
        (["id", "_ingested_at"], "column _ingested_at"),
        (["id", "_rules"], "column _rules"),
        (["id", " "], "have no name that can be written|columns without a name"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_columns_that_a_table_cannot_have_are_named(tmp_path, columns, says, ending):
    workspace = create(tmp_path)
    WRITERS[ending](pl.DataFrame({c: [1] for c in columns}), tmp_path / f"d{ending}")
    with pytest.raises(DataError, match=says):
        ingest("d", f"d{ending}", settings=workspace)
    assert not (tmp_path / "storage").exists()


def test_later_columns_that_a_table_cannot_have_are_named(tmp_path):
    workspace = create(tmp_path)
    pl.DataFrame({"id": [1]}).write_parquet(tmp_path / "1.parquet")
    contract = Contract(columns={"id": {"dtype": "integer", "nullable": True}}, on_change="evolve")
    ingest("d", "1.parquet", contract=contract, settings=workspace)
    pl.DataFrame({"id": [2], "ID": [3]}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(DataError, match="id and ID differ only in case"):
        ingest("d", "2.parquet", settings=workspace)
    assert rows(versions.dataset("d", settings=workspace)) == [(1,)]


def test_a_table_refuses_columns_that_it_cannot_tell_apart(tmp_path):
    table = str(tmp_path / "t")
    with pytest.raises(LakeError, match="columns id and ID cannot both be stored"):
        lake.append(table, pl.DataFrame({"id": [1], "ID": [2]}))
    with pytest.raises(LakeError, match="NUL character"):
        lake.append(table, pl.DataFrame({"a\0": [1]}))
    assert not lake.table_exists(table)


def test_a_query_names_its_columns_once(tmp_path):
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1)")
    with closing(connect_database("sqlite:///shop.db", tmp_path)) as database:
        with pytest.raises(DataError, match=r"columns of the same name \(a\): give each its own"):
            list(query_frames(database, "SELECT a, a FROM t"))


def test_a_model_takes_odd_columns(tmp_path):
    frame = pl.DataFrame({"*": [1, 2], "ab": [3.0, 4.0], "_id": [5, 6]})
    signature = Signature.of(frame, ignored=("_id",))
    assert [c.name for c in signature.columns] == ["*", "ab"]
    assert signature.conform(frame).rows() == [(1, 3.0), (2, 4.0)]
    assert signature.frame([{"*": 1, "ab": 2.5}]).rows() == [(1, 2.5)]
    with pytest.raises(SignatureError, match="one that polars takes for a pattern"):
        Signature.of(pl.DataFrame({"^a$": [1]}))


# Datasets and models


@pytest.mark.parametrize(
    "name", ["Kündigungen", "Ku\u0308ndigungen", "डेटा", "数据", "orders-2024", "2024"]
)
def test_a_dataset_is_named_by_a_word_of_any_language(tmp_path, name):
    from mlops_nb.flow.lineage import trace

    workspace = create(tmp_path)
    (tmp_path / "d.csv").write_text("id\n1\n")
    ref = ingest(name, "d.csv", settings=workspace).ref
    assert (
        versions.dataset(f"dataset:{name}@0", settings=workspace).ref
        == versions.dataset(name, settings=workspace).ref
        == ref
    )
    assert trace(f"dataset:{ref}", settings=workspace).root == f"dataset:{ref}"
    assert rows(versions.dataset(ref, settings=workspace)) == [(1,)]
    assert versions.quarantine(name, settings=workspace).collect().height == 0


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "/x",
        "a\\b",
        "_events",
        "x__quarantine",
        ".x",
        "a:b",
        "a@1",
        "",
        "a b",
        "a\0",
        "x" * 101,
    ],
)
def test_a_dataset_is_not_named_like_a_path_or_a_table_of_ours(tmp_path, name):
    workspace = create(tmp_path / "w")
    (workspace.root / "d.csv").write_text("id\n1\n")
    with pytest.raises(
        DataError, match="cannot name a dataset: expected at most 100 letters, digits, _ and -"
    ):
        ingest(name, "d.csv", settings=workspace)
    assert sorted(os.listdir(workspace.root)) == ["d.csv", "settings.ini"] and os.listdir(
        tmp_path
    ) == ["w"]


def test_a_dataset_of_before_names_were_checked_goes_on(tmp_path, monkeypatch):
    workspace = create(tmp_path)
    days(tmp_path, 1, "id\n1\n")
    with monkeypatch.context() as patch:
        patch.setattr(ingesting, "dataset_name", lambda name, settings: name)
        ingest("my data.v1", "in/*.csv", settings=workspace)
    days(tmp_path, 2, "id\n2\n")
    assert sorted(rows(ingest("my data.v1", "in/*.csv", settings=workspace))) == [(1,), (2,)]


@pytest.mark.parametrize("name", ["Kündigungen", "a/b", "../x", "a b", "", "x" * 101, "-x", "a.b"])
def test_a_model_is_named_by_ascii_when_its_objective_is_made(tmp_path, name):
    with pytest.raises(
        ObjectiveError, match="cannot name a model: expected at most 100 ASCII letters"
    ):
        objective.Objective(name=name, question="?", target="y", positive=1, key="id")
    with pytest.raises(RegistryError, match="cannot name a model"):
        registry.register(
            name,
            "runs:/1/candidate",
            report_uri="x",
            dataset="d@0",
            profile=b"",
            objective=None,
            by="ann",
            settings=create(tmp_path),
        )
    assert (
        objective.Objective(name="churn_2-b", question="?", target="y", positive=1, key="id").name
        == "churn_2-b"
    )


# Ends of splits by time


def month(workspace, number: int) -> None:
    sales = pl.DataFrame(
        {
            "day": [date(2024, number, day) for day in range(1, 29)],
            "id": [number * 100 + d for d in range(28)],
        }
    )
    sales.write_csv(workspace.root / f"{number}.csv")


def test_ends_of_splits_by_time_are_fixed_until_a_person_moves_them(tmp_path):
    workspace = create(tmp_path)
    for number in (1, 2):
        month(workspace, number)
    ingest(
        "sales",
        "*.csv",
        key="id",
        time="day",
        ends={"train": date(2024, 2, 1), "test": None},
        settings=workspace,
    )
    month(workspace, 3)
    fixed = ingest("sales", "*.csv", settings=workspace)
    assert fixed.counts == {"train": 28, "test": 56}
    with pytest.raises(DataError, match="move the ends by resplit"):
        ingest("sales", "*.csv", ends={"train": date(2024, 3, 1), "test": None}, settings=workspace)
    rolled = resplit(
        "sales", {"train": date(2024, 3, 1), "test": None}, by="ann", settings=workspace
    )
    assert (rolled.ref, rolled.counts, rolled.parent.ref) == (
        "sales@2",
        {"train": 56, "test": 28},
        "sales@1",
    )
    assert (
        rolled.scan("train").collect()["day"].max() == date(2024, 2, 28)
        and rolled.profile().rows == 56
    )
    assert (
        versions.dataset("sales@1", settings=workspace).counts == fixed.counts
        and fixed.scan("test").collect().height == 56
    )
    month(workspace, 4)
    assert ingest("sales", "*.csv", settings=workspace).counts == {"train": 56, "test": 56}
    event = events.newest(workspace.events, "resplit", "sales@2")
    assert event["by"] == "ann" and event["details"] == {
        "ends_before": {"train": "2024-02-01T00:00:00", "test": None},
        "ends_after": {"train": "2024-03-01T00:00:00", "test": None},
    }
    difference = fixed.diff(rolled)
    assert (difference.added, difference.removed, difference.changed) == (0, 0, 0)
    assert (
        resplit("sales", {"train": date(2024, 3, 1), "test": None}, settings=workspace).ref
        == "sales@3"
    )


def test_ends_follow_the_shares_when_asked_to(tmp_path):
    workspace = create(tmp_path)
    month(workspace, 1)
    ingest(
        "sales",
        "*.csv",
        key="id",
        time="day",
        ends="shares",
        shares={"train": 0.5, "test": 0.5},
        settings=workspace,
    )
    for number in (2, 3):
        month(workspace, number)
    assert ingest("sales", "*.csv", settings=workspace).counts["test"] >= 70
    rolled = resplit("sales", settings=workspace)
    assert sorted(rolled.counts.values()) == [42, 42] or max(rolled.counts.values()) <= 44


@pytest.mark.parametrize(
    "ends, says",
    [
        (
            {"train": date(2024, 1, 2), "test": None},
            "train ends at 2024-01-10 00:00:00 and cannot end earlier",
        ),
        ({"train": date(2024, 2, 2)}, "None for the last"),
        ({"a": date(2024, 2, 2), "test": None}, "expected an end of each split"),
    ],
)
def test_ends_that_cannot_be_are_refused(tmp_path, ends, says):
    workspace = create(tmp_path)
    month(workspace, 1)
    ingest(
        "sales",
        "*.csv",
        time="day",
        ends={"train": date(2024, 1, 10), "test": None},
        settings=workspace,
    )
    ingest("other", "*.csv", key="id", settings=workspace)
    with pytest.raises(DataError, match=says):
        resplit("sales", ends, settings=workspace)
    with pytest.raises(DataError, match="only splits by time have ends"):
        resplit("other", ends, settings=workspace)
    with pytest.raises(DataError, match="no dataset none"):
        resplit("none", ends, settings=workspace)
    assert lake.table_version(workspace.table("sales")) == 0
