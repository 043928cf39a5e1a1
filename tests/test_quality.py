"Leakage, balance and differences against brute force, in small batches; MLflow's record."

from collections import Counter

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2_contingency

from mlops_nb.core import events, tracking
from mlops_nb.core.errors import DataError, TrackingError
from mlops_nb.core.settings import create
from mlops_nb.data.contracts import Column, Contract
from mlops_nb.data.ingest import ingest
from mlops_nb.data.quality import balance, differences, leakage, spill
from mlops_nb.data.versions import DatasetVersion
from mlops_nb.flow.lineage import trace
from mlops_nb.flow.lineage_graph import as_json, as_text


@pytest.fixture
def settings(tmp_path):
    return create(tmp_path / "workspace")


@pytest.fixture(params=["at once", "in parts"])
def parts(request, monkeypatch):
    "Everything in memory, or a few rows at a time."
    if request.param == "in parts":
        monkeypatch.setattr(spill, "BATCH_ROWS", 70)
        monkeypatch.setattr(spill, "HASHES_IN_MEMORY", 90)


def given(settings, name: str, rows: pl.DataFrame, **options) -> DatasetVersion:
    "Ingest rows as a file."
    file = f"{name}-{len(list(settings.root.glob(f'{name}-*')))}.parquet"
    rows.write_parquet(settings.root / file)
    return ingest(name, file, settings=settings, **options)


def table(n: int, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "id": np.arange(n),
            "a": random.integers(0, 12, n),
            "b": random.choice(["x", "y", "z"], n),
            "g": random.integers(0, 30, n),
        }
    ).with_columns(
        g=pl.when(pl.col("g") > 25).then(None).otherwise("g"),
        at=pl.date(2025, 1, 1) + pl.duration(days=pl.col("id")),
    )


SHARES = {"train": 0.6, "tune": 0.2, "test": 0.2}


def test_leakage_is_what_brute_force_finds(settings, parts):
    version = given(settings, "t", table(400).drop("at"), key="id", shares=SHARES)
    found, rows = version.leakage(group="g").table, version.scan().collect()
    for check, columns in (("rows", ["a", "b", "g"]), ("group", ["g"]), ("key", ["id"])):
        for against, split in (("train", "tune"), ("train", "test"), ("tune", "test")):
            data = {
                s: Counter(
                    r for r in rows.filter(_split=s).select(columns).iter_rows() if r != (None,)
                )
                for s in (against, split)
            }
            both = data[against].keys() & data[split].keys()
            mine = found.row(
                by_predicate=(pl.col("check") == check)
                & (pl.col("split") == split)
                & (pl.col("against") == against),
                named=True,
            )
            assert (mine["values"], mine["rows"]) == (len(both), sum(data[split][v] for v in both))
            assert mine["share"] == pytest.approx(mine["rows"] / version.counts[split])


def test_what_leaks_is_said_and_shown(settings, parts):
    rows = pl.concat([table(200), table(200).with_columns(id=pl.col("id") + 200)])
    found = given(settings, "t", rows, key="id").leakage()
    assert not found.passed and "repeat a row of train" in found.problems[0]
    assert found.examples.height == 2 * leakage._EXAMPLES
    assert all(
        n == 2
        for n in found.examples.group_by("a", "b", "g", "at").agg(pl.col("_split").n_unique())[
            "_split"
        ]
    )
    assert found.problems[0] in found._repr_html_()


def test_coincidences_are_tolerated_up_to_a_share(settings):
    version = given(settings, "t", table(400).select("id", "a"), key="id")
    assert not version.leakage().passed and version.leakage(tolerated=1).passed


def test_without_a_key_equal_rows_stay_together(settings):
    rows = table(200).drop("id", "at")
    found = given(settings, "t", pl.concat([rows, rows])).leakage()
    assert (
        found.passed
        and found.table["check"].to_list() == ["rows"]
        and found.table["rows"].item() == 0
    )


def test_a_table_of_keys_alone_can_be_looked_at(settings):
    assert given(settings, "t", table(50).select("id"), key="id").leakage().passed


def test_time_is_a_problem_only_where_the_split_is_by_time(settings, parts):
    by_key = given(settings, "k", table(300), key="id", time="at")
    by_time = given(settings, "t", table(300), key="id", time="at", ends="shares")
    late = by_key.leakage()
    rows = by_key.scan().collect()
    start = rows.filter(_split="test")["at"].min()
    assert (
        late.table.filter(check="time")["rows"].item()
        == rows.filter(pl.col("at") > start, _split="train").height
        > 0
    )
    assert not [p for p in late.problems if "later" in p] and late.ranges["rows"].sum() == 300
    assert by_time.leakage().table.filter(check="time")["rows"].item() == 0


def test_another_time_than_the_splits_can_be_out_of_order(settings):
    rows = table(300).with_columns(seen=pl.col("at").reverse())
    found = given(settings, "t", rows, key="id", time="at", ends="shares").leakage(time="seen")
    assert [p for p in found.problems if "have a later seen than the first row of test" in p]


def test_a_column_that_is_not_there_is_named(settings):
    version = given(settings, "t", table(50), key="id")
    for ask in (
        lambda: version.leakage(group="no"),
        lambda: version.leakage(time="no"),
        lambda: version.balance("no"),
    ):
        with pytest.raises(DataError, match="has no column 'no'"):
            ask()


@pytest.mark.parametrize("column", ["a", "b", "g", "at", "x", "flag", "few", "id"])
def test_shares_are_exact_and_random_splits_are_balanced(settings, column):
    random = np.random.default_rng(1)
    rows = table(3000).with_columns(
        x=pl.Series(random.normal(size=3000)),
        flag=pl.col("a") > 5,
        few=(pl.col("a") % 3).cast(pl.Float64) / 2,
    )
    rows = rows.with_columns(x=pl.when(pl.col("a") == 0).then(None).otherwise("x"))
    version = given(settings, "t", rows, key="id", shares=SHARES)
    found = version.balance(column, significance=1e-4)
    assert found.passed and found.table["rows"].sum() == 3000 and "alike" in found._repr_html_()
    for split, part in found.table.group_by("split"):
        assert part["rows"].sum() == version.counts[split[0]] and part[
            "share"
        ].sum() == pytest.approx(1)
    if column in ("b", "flag", "a"):
        named = dict(found.table.group_by("value").agg(pl.col("rows").sum()).iter_rows())
        wanted = rows.group_by(pl.col(column).cast(pl.String)).len()
        assert named == dict(wanted.iter_rows())
    if column in ("g", "x"):
        assert found.table.filter(value=balance.MISSING)["rows"].sum() == rows[column].null_count()


def test_what_differs_is_found_and_its_size_is_told(settings):
    rows = table(2000).with_columns(x=pl.col("id").cast(pl.Float64))
    version = given(settings, "t", rows, key="id", time="at", ends="shares")
    found = version.balance("x")
    assert not found.passed and found.cramers_v > 0.5 and "not alike" in found._repr_html_()


def test_the_test_is_pearsons():
    counts = np.array([[200, 90, 40], [60, 40, 22], [55, 30, 15]])
    p, v, freedom = balance.homogeneity(counts)
    plain = chi2_contingency(counts, correction=False)
    assert (
        freedom == plain.dof
        and v == pytest.approx(np.sqrt(plain.statistic / counts.sum() / 2))
        and p > plain.pvalue
    )


def test_false_alarms_are_as_rare_as_promised_also_in_small_samples():
    random = np.random.default_rng(0)
    for sizes in ((30, 8), (300, 60), (5000, 1200)):
        alarms = 0
        for _ in range(500):
            counts = np.array([random.multinomial(n, [0.5, 0.3, 0.15, 0.04, 0.01]) for n in sizes])
            alarms += (
                balance.homogeneity(balance.pooled(counts[:, counts.sum(axis=0) > 0]))[0] < 0.05
            )
        assert alarms / 500 < 0.08


@pytest.mark.parametrize(
    ("counts", "pooled"),
    [
        (
            [[100, 3, 2], [20, 1, 0]],
            [[100, 5], [20, 1]],
        ),  # the rare ones together; with them the least of the others
        ([[3, 2], [1, 1]], [[5], [2]]),
        ([[50, 50], [40, 40]], [[50, 50], [40, 40]]),
    ],
)
def test_rare_categories_are_pooled(counts, pooled):
    found = balance.pooled(np.array(counts))
    if found.shape[1] == 1:
        assert found.sum(axis=1).tolist() == np.array(counts).sum(axis=1).tolist()
    else:
        assert found.tolist() == pooled


def brute(a: DatasetVersion, b: DatasetVersion) -> tuple[int, int, int]:
    "Rows added, removed, changed, in plain Python."
    old, new = ({r[0]: r for r in v.scan().drop("_split").collect().iter_rows()} for v in (a, b))
    return (
        len(new.keys() - old.keys()),
        len(old.keys() - new.keys()),
        sum(old[k] != new[k] for k in old.keys() & new.keys()),
    )


def test_differences_by_key_are_what_brute_force_finds(settings, parts):
    first = given(settings, "t", table(500), key="id")
    more = pl.concat([table(60, seed=5), table(520)[480:]])
    second = given(settings, "t", more, key="id")
    found = first.diff(second)
    assert (
        (found.added, found.removed, found.changed) == brute(first, second)
        and found.added == 20
        and found.changed > 40
    )
    assert found.table["number"].sum() == second.facts["rows"] and found.rows == (500, 520)
    assert found.examples["row"].n_unique() == differences._SHOWN_ROWS
    before = {str(r["id"]): r for r in first.scan().collect().iter_rows(named=True)}
    after = {str(r["id"]): r for r in second.scan().collect().iter_rows(named=True)}
    said = lambda v: None if v is None else str(v)
    for row, column, old, new in found.examples.iter_rows():
        assert (old, new) == (said(before[row][column]), said(after[row][column])) and old != new
    assert (
        "Rows are told apart by id" in found._repr_html_()
        and found.drift._repr_html_() in found._repr_html_()
    )


def test_the_way_back_is_the_opposite(settings, parts):
    first, second = (
        given(settings, "t", table(100), key="id"),
        given(settings, "t", table(130), key="id"),
    )
    there, back = first.diff(second), second.diff(first)
    assert (there.added, there.removed) == (back.removed, back.added) == (30, 0)
    assert second.diff(second).same and not there.same


def test_without_a_key_rows_come_and_go_as_often_as_they_stand_there(settings, parts):
    rows = table(40).drop("id", "at")
    first = given(settings, "t", pl.concat([rows, rows[:5]]))
    (settings.root / "t-0.parquet").unlink()
    pl.concat([rows[10:], rows[10:13]]).write_parquet(settings.root / "t-0.parquet")
    second = ingest("t", "t-0.parquet", settings=settings)
    old, new = (Counter(v.scan().drop("_split").collect().iter_rows()) for v in (first, second))
    found = first.diff(second)
    assert (found.added, found.removed, found.changed) == (
        (new - old).total(),
        (old - new).total(),
        0,
    )
    assert (
        found.removed >= 10
        and found.examples.height == 0
        and "there is no key" in found._repr_html_()
    )


def test_a_changed_schema_and_contract_are_told_apart_from_changed_rows(settings, parts):
    columns = {
        "id": Column(dtype="integer"),
        "a": Column(dtype="integer"),
        "b": Column(dtype="string"),
        "g": Column(dtype="integer", nullable=True),
    }
    rows = table(100).drop("at")
    first = given(
        settings, "t", rows, contract=Contract(columns=columns, key="id", on_change="evolve")
    )
    wider = columns | {
        "a": Column(dtype="float", max=50),
        "new": Column(dtype="string", nullable=True),
    }
    other = rows[:10].with_columns(pl.col("a") + 0.5, new=pl.lit("n"))
    second = given(settings, "t", other, contract=Contract(columns=wider, key="id"))
    found = first.diff(second)
    assert (
        found.schema.rows() == [("a", "integer", "float"), ("new", None, "string")]
        and not found.same
    )
    fields = {f: (a, b) for f, a, b in found.contract.iter_rows()}
    assert fields["columns.a.max"] == (None, "50.0") and fields["on_change"] == ("evolve", "fail")
    assert (found.added, found.removed, found.changed) == (0, 0, 10)


def test_only_files_that_differ_are_read(settings, monkeypatch):
    first, second = (
        given(settings, "t", table(500), key="id"),
        given(settings, "t", table(510)[500:], key="id"),
    )
    read, marked = [], differences._key_and_content
    monkeypatch.setattr(
        differences,
        "_key_and_content",
        lambda rows, key: read.append(rows.height) or marked(rows, key),
    )
    assert first.diff(second).added == 10 and sum(read) == 10


def test_nothing_is_left_on_disk(settings, tmp_path, monkeypatch):
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    version = given(settings, "t", table(50), key="id")
    version.leakage()
    version.diff(version)
    assert not list(place.iterdir())


def test_mlflow_knows_which_version_a_run_used(settings, monkeypatch):
    first, second = (
        given(settings, "t", table(50), key="id"),
        given(settings, "t", table(60), key="id"),
    )
    client = tracking.mlflow_client(settings)
    experiment = client.get_experiment_by_name(settings.experiment).experiment_id
    run = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLOPS_NB_RUN_ID", run)  # as in a stage
    assert first.log_input() == first.log_input() == second.log_input(context="testing") == run
    import mlflow

    logged = sorted(
        mlflow.get_run(run).inputs.dataset_inputs,
        key=lambda i: i.dataset.digest != first.facts["digest"],
    )
    assert [i.dataset.digest for i in logged] == [first.facts["digest"], second.facts["digest"]]
    assert [{t.key: t.value for t in i.tags} for i in logged] == [
        {"mlflow.data.context": "training", "mlops_nb.version": "t@0"},
        {"mlflow.data.context": "testing", "mlops_nb.version": "t@1"},
    ]
    source = mlflow.data.get_source(logged[0].dataset)
    assert source.path == settings.table("t") and source.delta_table_version == 0
    assert client.get_run(run).inputs.dataset_inputs[0].dataset.name == "t"


def test_where_no_run_is_open_nothing_is_logged(settings, monkeypatch):
    for name in ("MLOPS_NB_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    version = given(settings, "t", table(50), key="id")
    assert version.log_input() is None
    with pytest.raises(TrackingError, match="cannot be logged with run no_such_run"):
        version.log_input("no_such_run")


def test_the_trace_reaches_the_files_of_all_rows(settings):
    for n in (100, 200, 300):
        last = given(settings, "t", table(n)[n - 100 :], key="id")
    found = trace(last.ref, settings=settings)
    assert {f"file:t-{i}.parquet" for i in range(3)} | {
        "dataset:t@0",
        "dataset:t@1",
    } < found.nodes.keys()
    assert ("dataset:t@1", "dataset:t@0", "grown from") in found.edges
    assert as_text(found).count("grown from") == 2 and "(above)" not in as_text(found)


def test_a_file_that_was_another_then_is_another_source(settings):
    for n in (30, 40):
        table(n).write_parquet(settings.root / "t.parquet")
        last = ingest("t", "t.parquet", key="id", settings=settings)
    nodes = trace(last.ref, settings=settings).nodes
    files = {
        name: node["facts"]["sha256"]
        for name, node in nodes.items()
        if node["kind"] == "source file"
    }
    assert (
        list(files) == ["file:t.parquet", "file:t.parquet as in t@0"]
        and len({*files.values()}) == 2
    )


def test_a_long_chain_is_short_as_text_and_whole_as_json(settings):
    for i in range(100):
        facts = {
            "rows": i,
            "counts": {"train": i},
            "digest": f"{i:016x}",
            "rejected": 0,
            "parent": i - 1 if i else None,
            "files": {f"in/{i}-{j}.csv": f"{i}" for j in range(5)},
        }
        events.record(settings.events, "ingested", f"t@{i}", by="x", **facts)
    found = trace("dataset:t@99", settings=settings)
    said = as_text(found)
    assert (
        len(said.splitlines()) < 25
        and "grown from 99 versions, dataset:t@98 to dataset:t@0" in said
    )
    assert "and 492 more" in said and "read from 2 more" in said
    assert "in/0-4.csv" in as_json(found) and len(found.nodes) == 600
