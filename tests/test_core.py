"Settings, tables, events, contracts, splits: what a lesson would not show."

import contextlib
import json
import multiprocessing
import os
import pwd
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core import data_files, events, lake
from mlops_nb.core.errors import (
    CommitConflict,
    DataError,
    EventConflict,
    LakeError,
    MlopsError,
    SettingsError,
)
from mlops_nb.core.settings import create, load_settings
from mlops_nb.data import versions
from mlops_nb.data.contracts import Contract
from mlops_nb.data.inference import infer
from mlops_nb.data.ingest import ingest
from mlops_nb.data.splits import assign_splits, content_digest
from mlops_nb.data.validation import conform, enforce


def test_environment_overrides_the_file(tmp_path, monkeypatch):
    create(tmp_path, serve={"port": 8100, "host": "localhost"})
    monkeypatch.setenv("MLOPS_NB__SERVE__PORT", "9000")
    assert (load_settings(tmp_path).serve.port, load_settings(tmp_path).serve.host) == (
        9000,
        "localhost",
    )


def test_settings_are_found_from_below_and_by_environment(tmp_path, monkeypatch):
    create(tmp_path, workspace={"name": "shop"})
    below = tmp_path / "nbs" / "shop"
    below.mkdir(parents=True)
    assert load_settings(below).workspace.name == "shop"
    monkeypatch.setenv("MLOPS_NB_WORKSPACE", str(below))
    assert load_settings().root == tmp_path


@pytest.mark.parametrize(
    "text, says",
    [
        ("[serv]\nport = 1\n", "did you mean 'serve'"),
        ("[serve]\nprot = 1\n", "did you mean 'port'"),
        ("[serve]\nport = many\n", "valid integer"),
        ("port = 8000\n", "not an ini file"),
        ("[serve]\nport=1\nport=2\n", "not an ini file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, text, says):
    (tmp_path / "settings.ini").write_text(text)
    with pytest.raises(SettingsError, match=says):
        load_settings(tmp_path)


def test_nothing_is_written_for_settings_that_cannot_be(tmp_path):
    with pytest.raises(SettingsError):
        create(tmp_path / "new", serve={"port": 0})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"a": ["x"]}, schema={"a": pl.Categorical}),
        pl.DataFrame({"a": [None]}),
        pl.DataFrame({"a": [1]}, schema={"a": pl.UInt32}),
        pl.DataFrame({"a": [1]}, schema={"a": pl.Duration}),
    ],
)
def test_types_that_delta_would_change_are_refused(tmp_path, frame):
    with pytest.raises(LakeError, match="cannot be stored"):
        lake.append(str(tmp_path / "t"), frame)
    assert not lake.table_exists(str(tmp_path / "t"))


@pytest.mark.parametrize("value", [1.5, True, "7", None])
def test_nothing_is_cast_into_a_table(tmp_path, value):
    table = str(tmp_path / "t")
    lake.append(table, pl.DataFrame({"a": [1]}))
    with pytest.raises(LakeError):
        lake.append(table, pl.DataFrame({"a": [value]}))
    assert lake.scan(table).collect()["a"].to_list() == [1]


def _append(table: str, n: int, start: float) -> None:
    while time.time() < start:
        pass
    lake.append(table, pl.DataFrame({"n": [n]}), key=("race", 1))


def _commit(table: str, n: int, start: float) -> None:
    file = data_files.write_file(table, pl.DataFrame({"n": [n]}), f"{n}.parquet")
    while time.time() < start:
        pass
    with contextlib.suppress(CommitConflict):
        data_files.commit_files(
            table, [file], schema=pl.Schema({"n": pl.Int64}), at=None, keys={"race": 1}
        )


@pytest.mark.parametrize("write", [_append, _commit])
def test_of_many_writers_with_one_key_one_commits(tmp_path, write):
    "Also when all of them find that there is no table yet, at the same moment."
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(write, [(str(tmp_path / f"warm{n}"), n, 0) for n in range(8)], chunksize=1)
        for attempt in range(8):
            table, start = str(tmp_path / str(attempt)), time.time() + 0.2
            pool.starmap(write, [(table, n, start) for n in range(4)], chunksize=1)
            assert lake.scan(table).collect().height == 1


def test_first_times_and_another_commit_are_a_conflict_that_a_second_try_solves(tmp_path):
    table, plain = str(tmp_path / "t"), pl.DataFrame({"n": [1]})
    timed = plain.with_columns(at=pl.lit(datetime(2024, 5, 1, 10)))

    def write(rows, name, at):
        return data_files.commit_files(
            table, [data_files.write_file(table, rows, name)], schema=rows.schema, at=at
        )

    write(plain, "0.parquet", None)
    write(plain, "1.parquet", 0)
    with pytest.raises(CommitConflict):
        write(timed, "2.parquet", 0)
    assert lake.scan(table).collect().height == 2
    assert write(timed, "3.parquet", lake.table_version(table)) == 3
    assert lake.scan(table).collect().rows() == [(1, datetime(2024, 5, 1, 10))]


def test_a_commit_is_known_by_its_version_while_others_commit(tmp_path, monkeypatch):
    table, schema, read, more = (
        str(tmp_path / "t"),
        pl.Schema({"n": pl.Int64}),
        lake._commit_info,
        [3, 2],
    )

    def write(n, at):
        return data_files.commit_files(
            table,
            [data_files.write_file(table, pl.DataFrame({"n": [n]}), f"{n}.parquet")],
            schema=schema,
            at=at,
            metadata={"n": str(n)},
        )

    assert write(0, None) == 0

    def overtaken(*args):
        if more:
            pl.DataFrame({"n": [more.pop()]}).write_delta(table, mode="append")
        return read(*args)

    monkeypatch.setattr(lake, "_commit_info", overtaken)
    assert write(1, 0) == 1
    assert [(c["version"], c.get("n")) for c in lake.commits(table)] == [
        (3, None),
        (2, None),
        (1, "1"),
        (0, "0"),
    ]


def test_of_many_deciders_one_decides(tmp_path):
    log, won, lost = str(tmp_path / "log"), [], []
    first = events.record(log, "deployed", "churn", by="x", after=None)

    def decide(n):
        try:
            won.append(events.record(log, "deployed", "churn", by=str(n), after=first))
        except EventConflict:
            lost.append(n)

    threads = [threading.Thread(target=decide, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1 and len(lost) == 7
    assert events.history(log, "churn", "deployed").collect().height == 2


def test_a_decision_does_not_block_another_subject_or_kind(tmp_path):
    log = str(tmp_path / "log")
    a = events.record(log, "deployed", "a", by="x", after=None)
    events.record(log, "deployed", "b", by="x", after=None)
    events.record(log, "monitored", "a", by="x", after=None)
    last = events.record(log, "deployed", "a", by="x", after=a)
    assert events.newest(log, "deployed", "a")["id"] == last


def _record_many(log: str, name: str, count: int) -> None:
    for n in range(count):
        events.record(log, "counted", "churn", by=name, n=n)


def clock(monkeypatch, *, behind: timedelta) -> None:
    "Set this machine's clock back, as far as events see it."

    class Late(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - behind

    monkeypatch.setattr(events, "datetime", Late)


def test_a_writer_whose_clock_is_slow_is_not_overlooked(tmp_path, monkeypatch):
    log = str(tmp_path / "log")
    first = events.record(log, "deployed", "churn", by="ann", after=None)
    clock(monkeypatch, behind=timedelta(hours=1))
    second = events.record(log, "deployed", "churn", by="bob", after=first)
    assert events.newest(log, "deployed", "churn")["id"] == second
    a, b = events.history(log, "churn").collect()["at"]
    assert b - a == timedelta(microseconds=1), "the later event has the later time"
    with pytest.raises(EventConflict, match="bob"):
        events.record(log, "deployed", "churn", by="carol", after=first)


def test_a_decision_among_kinds_sees_all_of_them(tmp_path):
    log, kinds = str(tmp_path / "log"), ("approved", "rejected")
    first = events.record(log, "approved", "m/1", by="ann", after=None, among=kinds)
    events.record(log, "rejected", "m/1", by="bob")
    with pytest.raises(EventConflict, match="m/1 was rejected meanwhile by bob"):
        events.record(log, "approved", "m/1", by="carol", after=first, among=kinds)
    assert events.newest(log, kinds, "m/1")["kind"] == "rejected"
    with pytest.raises(EventConflict, match="never approved or rejected"):
        events.record(log, "approved", "m/2", by="carol", after=first, among=kinds)


def test_two_processes_number_one_subject_without_a_gap(tmp_path):
    log = str(tmp_path / "log")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_record_many, [(log, "a", 50), (log, "b", 50)], chunksize=1)
    rows = events.history(log, "churn").collect()
    assert rows["sequence"].to_list() == list(range(1, 101))
    assert rows["at"].is_sorted() and rows["at"].n_unique() == 100
    for name in "ab":
        numbers = [json.loads(d)["n"] for d in rows.filter(by=name)["details"]]
        assert numbers == list(range(50)), "each writer's events are in its own order"


OLD = {k: v for k, v in events.SCHEMA.items() if k != "sequence"}


def old_log(log: str) -> None:
    "Write a log without sequences: `a` deployed twice, the later one first in the table; `b` once."
    day = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [("two", day + timedelta(days=2), "a"), ("one", day, "a"), ("three", day, "b")]
    for id_, at, subject in rows:
        lake.append(
            log,
            pl.DataFrame(
                [
                    {
                        "id": id_,
                        "at": at,
                        "kind": "deployed",
                        "subject": subject,
                        "by": "x",
                        "details": "{}",
                    }
                ],
                schema=OLD,
            ),
        )


def test_a_log_without_sequences_opens_and_gets_them_with_the_first_write(tmp_path, monkeypatch):
    log = str(tmp_path / "log")
    old_log(log)
    assert events.newest(log, "deployed", "a")["id"] == "two"
    assert events.history(log, "a").collect().select("id", "sequence").rows() == [
        ("one", None),
        ("two", None),
    ]
    clock(monkeypatch, behind=timedelta(days=10_000))
    third = events.record(log, "deployed", "a", by="ann", after="two")
    assert events.newest(log, "deployed", "a")["id"] == third
    fourth = events.record(log, "deployed", "b", by="ann", after="three")
    lake.maintain(log)
    rows = events.history(log, "a").collect()
    assert rows.select("id", "sequence").rows() == [("one", None), ("two", None), (third, 1)]
    assert rows["at"].is_sorted() and events.newest(log, "deployed", "b")["id"] == fourth
    assert events.history(log).collect().height == 5


def test_first_writes_into_a_log_without_sequences_race_safely(tmp_path):
    log = str(tmp_path / "log")
    old_log(log)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(_record_many, [(log, name, 3) for name in "abcd"], chunksize=1)
    rows = events.history(log, "churn").collect()
    assert (
        rows["sequence"].to_list() == list(range(1, 13))
        and events.history(log).collect().height == 15
    )


RECORDER = """
import os, sys
from mlops_nb.core import events
from mlops_nb.core.errors import EventConflict
for n in range(1_000_000):
    id_ = events.record(sys.argv[1], "counted", "churn", by=sys.argv[2], n=n)
    os.write(1, f"{id_}\\n".encode())   # the acknowledgement
"""


@pytest.mark.chaos
def test_kill_9_leaves_the_numbers_without_a_gap(tmp_path, round_):
    "Two writers of one subject are killed while they record; what was acknowledged is there, once."
    log, acknowledged = str(tmp_path / "log"), [[], []]
    children = [
        subprocess.Popen([sys.executable, "-c", RECORDER, log, name], stdout=subprocess.PIPE)
        for name in "ab"
    ]
    readers = [
        threading.Thread(target=lambda c=c, into=into: into.extend(c.stdout))
        for c, into in zip(children, acknowledged, strict=True)
    ]
    for r in readers:
        r.start()
    until = time.monotonic() + 60
    while not all(len(a) > 5 for a in acknowledged) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.017 * round_)
    for c in children:
        c.kill()
    for c, r in zip(children, readers, strict=True):
        c.wait(), r.join()
    promised = {line.decode().strip() for a in acknowledged for line in a if line.endswith(b"\n")}
    events.record(log, "counted", "churn", by="survivor")
    rows = events.history(log, "churn").collect()
    assert len(promised) > 10 and promised <= set(rows["id"]), "an acknowledged event is missing"
    assert rows["sequence"].to_list() == list(range(1, rows.height + 1))
    assert rows.height - len(promised) <= 3, "more than the one unanswered event of each writer"


def test_the_user_is_the_operating_systems(monkeypatch):
    monkeypatch.setenv("LOGNAME", "mallory")
    monkeypatch.setenv("USER", "mallory")
    assert events.user() == pwd.getpwuid(os.getuid()).pw_name != "mallory"


dirty = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", None]),
        st.floats(-5, 5) | st.none(),
        st.sampled_from(["x", "y", "zz", None]),
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(dirty)
def test_accepted_and_rejected_are_all_that_was_read(rows):
    contract = Contract(
        columns={
            "k": {"dtype": "string"},
            "v": {"dtype": "float", "min": 0},
            "c": {"dtype": "string", "categories": ["x", "y"]},
        },
        key="k",
    )
    frame = pl.DataFrame(
        rows, schema={"k": pl.String, "v": pl.Float64, "c": pl.String}, orient="row"
    )
    good, bad = enforce(conform(frame, contract), contract)
    assert good.height + bad.height == frame.height
    together = pl.concat([good, bad.drop("_rules")]).rows()
    assert sorted(map(repr, together)) == sorted(map(repr, frame.rows()))
    assert bad["_rules"].str.len_chars().gt(0).all()
    assert good["k"].is_unique().all() and good["v"].ge(0).all()


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), unique=True, min_size=1, max_size=50), st.randoms())
def test_a_row_keeps_its_split_in_any_company(keys, random):
    frame = pl.DataFrame({"k": keys})
    alone = dict(assign_splits(frame, name="d", key="k").select("k", "_split").iter_rows())
    some = random.sample(keys, k=max(1, len(keys) // 2))
    for k, where in assign_splits(pl.DataFrame({"k": some}), name="d", key="k").iter_rows():
        assert alone[k] == where


def test_splits_are_the_same_for_ever():
    "These values were written down once; a change of library must not change them."
    rows = assign_splits(
        pl.DataFrame({"k": ["C00001", "C00002", "C00003", "C00004", "C00005", "C00006"]}),
        name="churn",
        key="k",
    )
    assert rows["_split"].to_list() == FIXED


FIXED = ["train", "test", "train", "test", "train", "test"]


def test_splits_take_their_shares():
    rows = pl.DataFrame({"k": [str(n) for n in range(20_000)]})
    counts = dict(
        assign_splits(
            rows, name="d", key="k", shares={"train": 0.7, "validation": 0.1, "test": 0.2}
        )["_split"]
        .value_counts()
        .iter_rows()
    )
    for name, share in {"train": 0.7, "validation": 0.1, "test": 0.2}.items():
        assert abs(counts[name] / 20_000 - share) < 0.015


def write(ws, **columns):
    pl.DataFrame(columns).write_csv(ws.root / "d.csv")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "d.csv is empty: expected a header"),
        ("a,b\n", "a header and no rows"),
        ("\x00\xff\xfe,\n\x01", "NUL bytes"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, says):
    ws = create(tmp_path)
    (tmp_path / "d.csv").write_bytes(text.encode("latin1"))
    with pytest.raises(MlopsError, match=says):
        ingest("d", "d.csv", key="a", settings=ws)
    assert not lake.table_exists(ws.table("d"))


def test_too_many_rejects_commit_nothing(tmp_path):
    ws = create(tmp_path)
    contract = infer(pl.DataFrame({"k": [1, 2], "v": [1.0, 2.0]}), key="k")
    write(ws, k=[1, 2, 3], v=[1.0, -2.0, -3.0])
    with pytest.raises(DataError, match=r"2 of 3 rows .* v must be at least 0.0 \(2 rows\)"):
        ingest("d", "d.csv", contract=contract, settings=ws)
    assert not lake.table_exists(ws.table("d")) and not lake.table_exists(ws.table("d__quarantine"))


def test_a_few_rejects_are_quarantined_with_their_rules(tmp_path):
    ws = create(tmp_path)
    contract = infer(pl.DataFrame({"k": [1, 2], "v": [1.0, 2.0]}), key="k")
    write(ws, k=list(range(100)), v=[-1.0] + [1.0] * 99)
    version = ingest("d", "d.csv", contract=contract, settings=ws)
    assert (version.facts["read"], version.facts["accepted"], version.facts["rejected"]) == (
        100,
        99,
        1,
    )
    kept = lake.scan(ws.table("d__quarantine")).collect().row(0, named=True)
    assert (
        kept["rules"] == "v|min"
        and kept["ingest"] == version.facts["ingest"]
        and '"v":-1.0' in kept["row"]
    )


@pytest.mark.parametrize(
    "columns, says",
    [
        ({"k": [1]}, "missing column v"),
        ({"k": [1], "v": [1.0], "w": [1]}, "new column w"),
        ({"k": [1], "v": ["x"]}, "v is string, expected float"),
    ],
)
def test_another_schema_is_refused(tmp_path, columns, says):
    ws = create(tmp_path)
    contract = infer(pl.DataFrame({"k": [1, 2], "v": [1.0, 2.0]}), key="k")
    write(ws, **columns)
    with pytest.raises(DataError, match=says):
        ingest("d", "d.csv", contract=contract, settings=ws)


def test_an_ingest_that_died_before_its_event_is_finished_once(tmp_path, monkeypatch):
    ws = create(tmp_path)
    write(ws, k=list(range(50)), v=[1.0] * 50)

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(versions.events, "record", dies)
        with pytest.raises(KeyboardInterrupt):
            ingest("d", "d.csv", key="k", settings=ws)
    version = ingest("d", "d.csv", key="k", settings=ws)
    assert version.ref == "d@0" and version.scan().collect().height == 50


def test_content_digest_is_of_a_set_of_rows():
    rows = pl.DataFrame(
        {"a": [1, 2], "b": ["x", None], "at": [datetime(2026, 1, 1, tzinfo=UTC)] * 2}
    )
    same = rows.reverse().select("b", "at", "a")
    assert content_digest(rows) == content_digest(same)
    assert content_digest(rows) != content_digest(rows.with_columns(a=pl.col("a") + 1))


def test_unknown_references_say_what_there_is(tmp_path):
    ws = create(tmp_path)
    with pytest.raises(DataError, match="ingest one first"):
        versions.dataset("d", settings=ws)
    write(ws, k=[1, 2])
    ingest("d", "d.csv", key="k", settings=ws)
    with pytest.raises(DataError, match="there is d@0"):
        versions.dataset("d@7", settings=ws)
    with pytest.raises(DataError, match="not a dataset reference"):
        versions.dataset("d/4", settings=ws)
