"Profiles agree with stock whylogs; drift of small, odd and broken samples, and its error rate."

import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import ConstraintError, ProfileError
from mlops_nb.core.settings import create
from mlops_nb.data.profiles import profile_files, profile_groups, store
from mlops_nb.data.profiles.comparison import drift, holm
from mlops_nb.data.profiles.constraints import check_constraints
from mlops_nb.data.profiles.profiling import Profile, profile

TELCO = Path(__file__).parents[1] / "data" / "telco_churn.parquet"


@pytest.fixture(scope="module")
def telco() -> pl.DataFrame:
    return pl.read_parquet(TELCO)


@pytest.fixture(scope="module")
def why():
    "Stock whylogs, mended for NumPy 2 here only."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHYLOGS_NO_ANALYTICS", "True")
        patch.setattr(np, "unicode_", np.str_, raising=False)
        import whylogs

        yield whylogs


# -- agreement with why.log ----------------------------------------------------------------------

NULL = st.none()
COLUMNS = {
    "small": (pl.Int8, st.integers(-128, 127)),
    "short": (pl.Int16, st.integers(-(2**15), 2**15 - 1)),
    "middle": (pl.Int32, st.integers(-(2**31), 2**31 - 1)),
    "byte": (pl.UInt8, st.integers(0, 255)),
    "word": (pl.UInt16, st.integers(0, 2**16 - 1)),
    "unsigned": (pl.UInt32, st.integers(0, 2**32 - 1)),
    "long": (pl.UInt64, st.integers(0, 2**53)),
    "wide": (pl.Int64, st.integers(-(2**53), 2**53)),
    "float": (pl.Float64, st.floats(-1e9, 1e9) | NULL | st.just(float("nan"))),
    "single": (pl.Float32, st.floats(-1000, 1000, width=32)),
    "infinite": (
        pl.Float64,
        st.floats(-1e100, 1e100) | st.sampled_from([float("inf"), float("-inf")]),
    ),
    "flag": (pl.Boolean, st.booleans()),
    "text": (pl.String, st.text(max_size=200) | NULL),
    "choice": (pl.String, st.sampled_from(["DSL", "Fiber optic", "No"])),
    "category": (pl.Categorical, st.sampled_from(["DSL", "No"]) | NULL),
    "enum": (pl.Enum(["DSL", "No"]), st.sampled_from(["DSL", "No"]) | NULL),
    "money": (pl.Decimal(12, 2), st.decimals(-(10**6), 10**6, places=2) | NULL),
    "day": (pl.Date, st.dates(date(1700, 1, 1), date(2200, 1, 1)) | NULL),
    "moment": (pl.Datetime("us"), st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)) | NULL),
}
KINDS = {"integral", "fractional", "boolean", "string", "object", "tensor", "null"}


def frames() -> st.SearchStrategy[pl.DataFrame]:
    row = st.fixed_dictionaries({name: values for name, (_, values) in COLUMNS.items()})
    schema = {name: dtype for name, (dtype, _) in COLUMNS.items()}
    return st.lists(row, min_size=1, max_size=40).map(
        lambda rows: pl.DataFrame(rows, schema=schema, strict=False)
    )


def facts(view, column: str) -> dict:
    "What both must agree on, sketches by what they answer."
    metrics = {m.namespace: m for m in view.get_column(column).get_metrics()}
    answers = metrics["counts"].to_summary_dict() | metrics["types"].to_summary_dict()
    answers.pop("nan")  # pandas has no other null in a float column
    if "distribution" in metrics:
        answers |= metrics["distribution"].to_summary_dict()
    if "cardinality" in metrics:
        answers["distinct"] = metrics["cardinality"].estimate
    if "ints" in metrics:
        answers |= {f"int_{k}": v for k, v in metrics["ints"].to_summary_dict().items()}
    if "frequent_items" in metrics:
        answers["items"] = sorted((i.value, i.est) for i in metrics["frequent_items"].strings)
    return answers


def same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        our_value = ours[name]
        if isinstance(value, float):
            if name in ("mean", "stddev") and not np.isfinite(ours["max"] - ours["min"]):
                continue  # both undefined
            error = max(1e-6, _last_bit(ours) if name == "mean" else 0)
            assert our_value == pytest.approx(value, rel=1e-6, abs=error, nan_ok=True), name
        else:
            assert our_value == value, name


def _last_bit(answers: dict) -> float:
    "The last bit of the largest value: two orders of summing may differ by it in the mean."
    return float(np.spacing(max(abs(answers["max"]), abs(answers["min"]))))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(
    max_examples=100, deadline=None, phases=[Phase.explicit, Phase.generate]
)  # shrinking is slow
@given(frame=frames())
def test_agrees_with_why_log(why, frame):
    text = frame.with_columns(
        pl.col("category", "enum").cast(pl.String)
    )  # why.log breaks on categoricals of pandas 3
    theirs = why.log(text.to_pandas()).view()
    ours = Profile.from_bytes(profile(frame).to_bytes()).view
    for column in frame.columns:
        if frame[column].null_count() == frame.height:
            continue  # pandas forgets the type of a column of nulls
        our_facts = facts(ours, column)
        their_facts = facts(theirs, column)
        if frame[column].dtype.is_temporal():  # of these why.log counts the types only
            our_facts = {name: n for name, n in our_facts.items() if name in KINDS}
            their_facts = {name: n for name, n in their_facts.items() if name in KINDS}
        if column == "money":
            their_facts.pop("items")  # frequent values of decimals, which are floats here
        same(our_facts, their_facts)


def test_agrees_with_why_log_at_size(why):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "x": rng.normal(size=200_000),
            "n": rng.integers(-9, 9, 200_000),
            "id": [f"id{i}" for i in range(200_000)],
        }
    )
    theirs, ours = why.log(frame.to_pandas()).view(), profile(frame).view
    for column in frame.columns:
        a, b = (v.get_column(column).get_metric("cardinality").estimate for v in (ours, theirs))
        assert a == pytest.approx(
            b, rel=0.05
        )  # HyperLogLog's estimate depends on the order of the values
    for column in ("x", "n"):
        a, b = (v.get_column(column).get_metric("distribution") for v in (ours, theirs))
        assert (a.n, a.max, a.min) == (b.n, b.max, b.min)
        assert (a.avg, a.stddev) == pytest.approx((b.avg, b.stddev))
        for q in (0.05, 0.5, 0.95):
            value = a.get_quantile(q)
            assert (
                (frame[column] < value).mean() - 0.0027
                <= q
                <= (frame[column] <= value).mean() + 0.0027
            )


def test_stock_whylogs_reads_merges_and_checks(why, telco, tmp_path):
    path = profile(telco[:3000]).write(tmp_path / "first.bin")
    stock = why.DatasetProfileView.read(str(path)).merge(why.log(telco[3000:].to_pandas()).view())
    assert stock.get_column("tenure").get_metric("counts").n.value == telco.height
    assert len(stock.to_pandas()) == telco.width
    from whylogs.core.constraints import ConstraintsBuilder
    from whylogs.core.constraints.factories import smaller_than_number

    builder = ConstraintsBuilder(dataset_profile_view=stock)
    builder.add_constraint(smaller_than_number(column_name="tenure", number=73))
    assert builder.build().validate()


def test_bulk_sketches_are_within_their_error_and_merge(why):
    rng, n = np.random.default_rng(1), 300_000
    frame = pl.DataFrame(
        {
            "x": rng.normal(size=n),
            "sorted": np.sort(rng.normal(size=n)),
            "periodic": np.arange(n) % 256.0,
            "wide": rng.integers(0, 10**12, n),
            "narrow": rng.geometric(0.01, n),
            "id": [f"id{i}" for i in range(n - 900)] + ["id7"] * 900,
        }
    )
    ours = Profile.from_bytes(profile(frame).to_bytes()).view
    merged = ours.merge(why.log(frame[:100_000].to_pandas()).view())
    for column in frame.columns[:-1]:
        for view, data in (
            (ours, frame[column]),
            (merged, pl.concat([frame[column], frame[column][:100_000]])),
        ):
            spread, error = view.get_column(column).get_metric("distribution"), 2 * 0.0027
            assert (spread.n, spread.min, spread.max) == (len(data), data.min(), data.max())
            for q in (0.01, 0.3, 0.5, 0.9, 0.999):
                value = spread.kll.value.get_quantile(q)
                assert (data < value).mean() - error <= q <= (data <= value).mean() + error
    for column in ("narrow", "id", "wide"):
        sketch = ours.get_column(column).get_metric("frequent_items").frequent_strings.value
        assert sketch.get_total_weight() == n
        for value, count in (
            frame[column].cast(pl.String).value_counts(sort=True)[:900:30].iter_rows()
        ):
            assert sketch.get_lower_bound(value) <= count <= sketch.get_upper_bound(value)
    assert ours.get_column("id").get_metric("cardinality").estimate == pytest.approx(
        n - 900, rel=0.05
    )


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 60_000), words=st.integers(1, 60_000), seed=st.integers(0, 2**32))
def test_the_strings_that_change_a_sketch_leave_it_as_all_strings_would(rows, words, seed):
    from whylogs_sketching import hll_sketch

    from mlops_nb.data.profiles.bulk import cardinality_updates

    picked = np.random.default_rng(seed).integers(0, words, rows)
    values = pl.Series(
        ["" if i % 97 == 0 else "é" * (i % 7) + str(i) * (1 + i % 9) for i in picked.tolist()]
    )
    every, some = hll_sketch(12), hll_sketch(12)
    every.update_str_list(values.to_list())
    some.update_str_list(values.filter(pl.Series(cardinality_updates(values)[0])).to_list())
    assert some.serialize_compact() == every.serialize_compact()


@pytest.mark.parametrize("rows", [1, 2, 1023, 1024, 1025, 2049, 100_000, 250_000, 262_145])
@pytest.mark.parametrize(
    "of",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.integers(0, 9, n),
        lambda rng, n: rng.integers(0, 2**60, n),
        lambda rng, n: np.sort(rng.normal(size=n)),
    ],
)
def test_ranks_are_within_the_sketches_error(rows, of):
    data = of(np.random.default_rng(rows), rows)
    sketch = (
        profile(pl.DataFrame({"x": data})).view.get_column("x").get_metric("distribution").kll.value
    )
    data, allowed = np.sort(data), 0.0027 if rows > 1024 else 1e-9
    assert (sketch.get_n(), sketch.get_min_value(), sketch.get_max_value()) == (
        rows,
        data[0],
        data[-1],
    )
    for value in data[:: max(rows // 50, 1)]:
        assert abs(sketch.get_rank(float(value), True) - (data <= value).mean()) <= allowed


def test_a_hundred_parts_are_the_whole():
    rng = np.random.default_rng(5)
    data = np.cumsum(rng.normal(size=300_000))  # the parts differ
    merged = profile(pl.DataFrame({"x": data[:3000]}))
    for i in range(3000, len(data), 3000):
        merged = merged.merge(profile(pl.DataFrame({"x": data[i : i + 3000]})))
    spread = Profile.from_bytes(merged.to_bytes()).view.get_column("x").get_metric("distribution")
    assert (spread.n, spread.min, spread.max) == (len(data), data.min(), data.max())
    assert (spread.avg, spread.stddev) == (
        pytest.approx(data.mean()),
        pytest.approx(data.std(ddof=1)),
    )
    for q in (0.01, 0.25, 0.5, 0.75, 0.99):
        assert abs((data <= spread.get_quantile(q)).mean() - q) < 0.0054


# -- constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "rules", "passed"),
    [
        ("tenure", {"between": (0, 72)}, True),
        ("tenure", {"between": (1, 72)}, False),
        ("tenure", {"mean": (30, 35)}, True),
        ("total_charges", {"missing": 0}, False),
        ("total_charges", {"missing": 0.01}, True),
        ("contract", {"type": "string"}, True),
        ("contract", {"type": "number"}, False),
        ("contract", {"distinct": (3, 3)}, True),
        ("contract", {"between": (0, 1)}, False),
        ("contract", {"among": ["One year"]}, False),
        ("contract", {"unique": True}, False),
        ("nowhere", {"missing": 1}, False),
    ],
)
def test_constraints(telco, column, rules, passed):
    checked = check_constraints(profile(telco), {column: rules})
    assert checked.passed is passed and ("holds" if passed else "fails") in checked._repr_html_()


def test_a_wrong_rule_is_refused(telco):
    for rules in ({"betwen": (0, 1)}, {"between": 3}, {"type": "text"}):
        with pytest.raises(ConstraintError, match="tenure"):
            check_constraints(profile(telco), {"tenure": rules})


# -- on Ray --------------------------------------------------------------------------------------


def test_files_and_windows_on_ray(workspace, telco, tmp_path):
    days = pl.datetime_range(datetime(2026, 1, 1), datetime(2026, 1, 3, 23), "1h", eager=True)
    frame = telco.with_columns(
        at=pl.Series(days).gather(pl.Series(np.arange(telco.height) % len(days)))
    )
    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for i, file in enumerate(files):
        frame[i * 2500 : (i + 1) * 2500].write_parquet(file)
    exact = ["column", "type", "rows", "missing", "min", "max"]
    whole = profile_files(files, settings=workspace)
    assert whole.summary().select(exact).equals(profile(frame).summary().select(exact))
    windows = profile_groups(files, pl.col("at").dt.truncate("1d"), settings=workspace)
    day = datetime(2026, 1, 2)
    assert len(windows) == 3 and windows[day].at.replace(tzinfo=None) == day
    expected = profile(frame.filter(pl.col("at").dt.date() == date(2026, 1, 2))).summary()
    assert windows[day].summary().select(exact).equals(expected.select(exact))
    files[1].write_bytes(b"no parquet")
    with pytest.raises(ProfileError, match=r"1\.parquet cannot be profiled"):
        profile_files(files, settings=workspace)
    with pytest.raises(ProfileError, match="at least one file"):
        profile_files([], settings=workspace)


# -- every type of column ------------------------------------------------------------------------

ODD = {
    "tiny": pl.Series([1, None], dtype=pl.Int8),
    "huge": pl.Series([2**64 - 1, 1], dtype=pl.UInt64),
    "giant": pl.Series([2**100, 1], dtype=pl.Int128),
    "half": pl.Series([1.5, None], dtype=pl.Float32),
    "money": pl.Series([Decimal("1.10"), Decimal("2.20")]),
    "enum": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])),
    "category": pl.Series(["a", None], dtype=pl.Categorical),
    "day": pl.Series([date(2026, 1, 1), None]),
    "moment": pl.Series([datetime(2026, 1, 1), None]).dt.replace_time_zone("Europe/Zurich"),
    "clock": pl.Series([time(1), time(2)]),
    "wait": pl.Series([timedelta(seconds=1), None]),
    "list": pl.Series([[1, 2], None]),
    "struct": pl.Series([{"a": 1, "b": [date(2026, 1, 1)]}, {"a": None, "b": None}]),
    "array": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)),
    "bytes": pl.Series([b"\xff\x00", None]),
    "null": pl.Series([None, None]),
    "object": pl.Series([{1, 2}, None], dtype=pl.Object),
    "nothing": pl.Series([None, None], dtype=pl.Float64),
    "nan": pl.Series([float("nan"), None]),
}
TYPES = {
    "tiny": "number",
    "huge": "number",
    "giant": "number",
    "half": "number",
    "money": "number",
    "enum": "string",
    "category": "string",
    "day": "time",
    "moment": "time",
    "clock": "time",
    "wait": "time",
    "list": "string",
    "struct": "string",
    "array": "string",
    "bytes": "string",
    "null": None,
    "object": "string",
    "nothing": None,
    "nan": None,
}


@pytest.mark.parametrize("name", ODD)
def test_every_type(name):
    odd = Profile.from_bytes(profile(pl.DataFrame([ODD[name].alias(name)])).to_bytes())
    row = odd.summary().row(0, named=True)
    missing = ODD[name].is_null().sum() + (1 if name == "nan" else 0)
    assert (row["type"], row["rows"], row["missing"]) == (TYPES[name], 2, missing / 2)
    assert row["distinct"] == 2 - missing
    compared = drift(odd, odd)
    assert compared.drifted == [] and compared.problems == {}
    assert "<table>" in compared._repr_html_() and "<table>" in odd._repr_html_()


def test_nested_values_are_their_json():
    column = profile(pl.DataFrame({"s": [[{"a": 1}], [{"a": 1}]]})).view.get_column("s")
    assert column.get_metric("frequent_items").strings[0].value == '[{"a": 1}]'


@pytest.mark.parametrize(
    "frame", [pl.DataFrame(), pl.DataFrame(schema={"a": pl.Int64, "b": pl.String})]
)
def test_empty_frames(frame):
    empty = Profile.from_bytes(profile(frame).to_bytes())
    assert empty.rows == 0 and empty.columns == frame.columns
    assert drift(empty, empty).table.filter("drifted").is_empty()
    full = profile(pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}))
    assert set(drift(empty, full).problems.values()) <= {"no values", "missing"}


def test_lazy_frames_are_profiled_in_parts(telco, tmp_path, monkeypatch):
    telco.write_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr("mlops_nb.data.profiles.profiling.PROFILE_BATCH_ROWS", 1000)
    lazy, eager = profile(pl.scan_parquet(tmp_path / "t.parquet")), profile(telco)
    assert lazy.rows == eager.rows
    exact = ["column", "type", "rows", "missing", "min", "max"]
    assert lazy.summary().select(exact).equals(eager.summary().select(exact))


@settings(max_examples=30, deadline=None)
@given(frame=frames(), cut=st.integers(0, 40))
def test_merging_is_profiling_the_whole(frame, cut):
    whole, parts = (
        profile(frame).summary(),
        profile(frame[:cut]).merge(profile(frame[cut:])).summary(),
    )
    exact = ["column", "type", "rows", "missing", "distinct", "min", "max"]
    assert parts.select(exact).equals(whole.select(exact))


def test_numbers_too_great_to_square_can_be_merged():
    part = Profile.from_bytes(profile(pl.DataFrame({"x": [1e300, -1e300]})).to_bytes())
    assert part.merge(profile(pl.DataFrame({"x": [1.0]}))).summary()["max"].item() == 1e300


def test_garbage_is_refused():
    for data in (
        b"",
        b"WHY1",
        b"PAR1 something",
        profile(pl.DataFrame({"a": [1]})).to_bytes()[:-3],
    ):
        with pytest.raises(ProfileError, match="whylogs profile"):
            Profile.from_bytes(data)


def test_import_loads_nothing_heavy_and_using_it_opens_no_socket():
    code = """if 1:
        import sys, os, socket
        os.environ.pop("WHYLOGS_NO_ANALYTICS", None)
        def refuse(*a, **k): raise AssertionError("network")
        socket.socket.connect = socket.create_connection = refuse
        import threading; threading.excepthook = lambda a: os._exit(3)
        from mlops_nb.data.profiles.profiling import profile
        from mlops_nb.data.profiles.constraints import check_constraints
        assert not {"whylogs", "matplotlib", "scipy", "pandas"} & set(sys.modules)
        import polars as pl
        one_row = profile(pl.DataFrame({"a": [1]}))
        assert check_constraints(one_row, {"a": {"between": (0, 1)}}).passed
        import numpy
        assert not hasattr(numpy, "unicode_")
        """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- drift ---------------------------------------------------------------------------------------


def dearer(frame: pl.DataFrame) -> pl.DataFrame:
    fibre = pl.col("internet_service") == "Fiber optic"
    return frame.with_columns(
        monthly_charges=pl.when(fibre)
        .then(pl.col("monthly_charges") * 1.25)
        .otherwise("monthly_charges")
    )


def test_quiet_when_nothing_happened_and_alarmed_when_it_did(telco):
    false_alarms, right = 0, 0
    for seed in range(60):
        order = np.random.default_rng(seed).permutation(telco.height)
        fifth, others = (
            telco[order[: telco.height // 5]],
            profile(telco[order[telco.height // 5 :]]),
        )
        false_alarms += bool(drift(profile(fifth), others).drifted)
        right += drift(profile(dearer(fifth)), others).drifted == ["monthly_charges"]
    assert false_alarms <= 2 and right >= 58


@pytest.mark.parametrize(
    ("rows", "shares"),
    [(100, [0.06, 0.1, 0.84]), (1000, [0.01, 0.05, 0.94]), (2000, [0.001, 0.999])],
)
def test_rare_categories_raise_no_false_alarms(rows, shares):
    rng, names = np.random.default_rng(1), [f"c{i}" for i in range(len(shares))]
    sample = lambda n: profile(pl.DataFrame({"c": rng.choice(names, n, p=shares)}))
    alarms = sum(
        bool(drift(sample(rows), sample(5000), significance=0.01).drifted) for _ in range(200)
    )
    assert alarms <= 8


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 30])
def test_small_windows_are_judged_carefully(telco, rows):
    reference = profile(telco)
    assert not any(drift(profile(telco.sample(rows, seed=s)), reference).drifted for s in range(20))


def test_a_small_window_that_is_far_off_is_seen():
    reference = profile(pl.DataFrame({"x": np.random.default_rng(0).normal(size=5000)}))
    assert drift(
        profile(pl.DataFrame({"x": np.random.default_rng(1).normal(3, 1, 20)})), reference
    ).drifted == ["x"]


def test_sketching_invents_no_drift_in_large_samples():
    rng = np.random.default_rng(2)
    for _ in range(5):
        a, b = (profile(pl.DataFrame({"x": rng.normal(size=300_000)})) for _ in range(2))
        assert drift(a, b).drifted == []
    shifted = profile(pl.DataFrame({"x": rng.normal(0.05, 1, 300_000)}))
    assert drift(shifted, b).drifted == ["x"]


@pytest.mark.parametrize("decimals", [9, 1], ids=["all different", "many ties"])
def test_the_distance_is_the_exact_one_where_the_sketch_is_exact(decimals):
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(3)
    x, y = rng.normal(size=200).round(decimals), rng.normal(0.4, 1, 300).round(decimals)
    row = drift(profile(pl.DataFrame({"x": x})), profile(pl.DataFrame({"x": y}))).table.row(
        0, named=True
    )
    exact = ks_2samp(x, y, method="exact")
    assert row["distance"] == pytest.approx(exact.statistic) and row["p_value"] == pytest.approx(
        exact.pvalue
    )


@pytest.mark.parametrize("size", [1000, 5000, 100_000])
def test_large_samples_have_the_p_values_of_the_exact_distribution(size):
    from scipy.stats import kstwo

    from mlops_nb.data.profiles.comparison import _kolmogorov

    for x, error in ((0.5, 0.001), (1, 0.001), (1.9, 0.003), (2.7, 0.02)):
        exact = kstwo.sf(x / size**0.5, size)
        assert _kolmogorov(x / size**0.5, size) == pytest.approx(exact, rel=error)


def test_an_unseen_category_is_drift_and_a_stray_one_is_not():
    reference = profile(pl.DataFrame({"plan": ["a", "b"] * 1000}))
    frequent = profile(pl.DataFrame({"plan": ["a", "b", "new"] * 100}))
    stray = profile(pl.DataFrame({"plan": ["a", "b"] * 150 + ["new"]}))
    assert drift(frequent, reference).drifted == ["plan"]
    assert drift(stray, reference).drifted == []


def test_few_distinct_integers_are_categories_and_many_are_numbers():
    rng = np.random.default_rng(4)
    a = profile(pl.DataFrame({"flag": rng.integers(0, 2, 1000), "age": rng.integers(0, 90, 1000)}))
    kinds = dict(drift(a, a).table.select("column", "kind").iter_rows())
    assert kinds == {"flag": "categorical", "age": "numeric"}
    assert (
        drift(profile(pl.DataFrame({"flag": [7] * 500, "age": [1] * 500})), a)
        .table["drifted"]
        .all()
    )


def test_identifiers_do_not_drift():
    ids = lambda n, k: profile(pl.DataFrame({"id": [f"{k}{i}" for i in range(n)]}))
    assert drift(ids(3000, "x"), ids(9000, "y")).drifted == []
    assert drift(profile(pl.DataFrame({"id": ["same"] * 3000})), ids(9000, "y")).drifted == ["id"]


def test_broken_columns_are_problems_not_drift(telco):
    broken = telco.drop("partner").with_columns(
        pl.col("tenure").cast(pl.String), churn=pl.lit(None, pl.String), extra=pl.lit(1)
    )
    result = drift(profile(broken), profile(telco))
    assert result.problems == {
        "partner": "missing",
        "tenure": "string here, number in the reference",
        "churn": "no values",
        "extra": "not in the reference",
    }
    assert result.drifted == []
    untested = result.table.filter(pl.col("problem").is_not_null(), pl.col("p_value").is_null())
    assert set(untested["column"]) == {
        "partner",
        "tenure",
        "extra",
    }  # that "churn" is empty is no chance: it is tested


def test_a_column_without_values_is_a_matter_of_chance():
    """Of samples of 50 rows, a third has no value if 10 of 500 rows have one.

    If half of the rows have one, no sample is without.
    """
    column = lambda values, rows: profile(
        pl.DataFrame({"a": [1.0] * values + [None] * (rows - values)}, schema={"a": pl.Float64})
    )
    rare, common = drift(column(0, 50), column(10, 500)), drift(column(0, 50), column(250, 500))
    assert rare.problems == {} and rare.drifted == []
    from math import comb

    assert rare.table["p_value"].item() == pytest.approx(comb(500, 10) / comb(550, 10))
    assert common.problems == {"a": "no values"}
    assert drift(column(1, 50), column(0, 500)).problems == {}
    assert drift(column(25, 50), column(0, 500)).problems == {"a": "no values in the reference"}


@pytest.mark.parametrize("n, m", [(1, 80), (2, 80), (7, 40), (30, 700)])
def test_distances_of_small_samples_have_the_exact_chance(n, m):
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(n)
    for shift in (0, 0.3, 2):
        a, b = rng.random(n) + shift, rng.random(m)
        exact = ks_2samp(a, b, method="exact").pvalue
        p = (
            drift(profile(pl.DataFrame({"a": a})), profile(pl.DataFrame({"a": b})))
            .table["p_value"]
            .item()
        )
        assert p == pytest.approx(exact, rel=1e-6) or max(p, exact) < 1e-9


def test_integers_that_became_floats_are_still_compared(telco):
    as_floats = telco.with_columns(pl.col("tenure", "female").cast(pl.Float64))
    result = drift(profile(as_floats), profile(telco))
    assert result.problems == {} and result.drifted == []


def test_times_are_tested_only_when_named():
    days = lambda y: profile(
        pl.DataFrame({"d": pl.date_range(date(y, 1, 1), date(y, 12, 31), eager=True)})
    )
    assert drift(days(2026), days(2025)).drifted == []
    assert drift(days(2026), days(2025), columns=["d"]).drifted == ["d"]


def test_constant_and_infinite_columns():
    frame = pl.DataFrame(
        {"one": [1.0] * 50, "inf": [float("inf"), -1.0] * 25, "all": [float("-inf")] * 50}
    )
    result = drift(profile(frame), profile(frame))
    assert result.drifted == [] and result.table["distance"].to_list() == [0, 0, 0]
    assert "<img" in result._repr_html_()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm(p):
    corrected = holm(p)
    assert ((corrected >= np.array(p)) & (corrected <= 1)).all()
    assert corrected.min() == pytest.approx(min(1, min(p) * len(p)))
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


def test_html_escapes_names():
    frame = pl.DataFrame({"<script>x": [1, 2, 3]})
    assert (
        "<script>"
        not in drift(profile(frame), profile(frame))._repr_html_() + profile(frame)._repr_html_()
    )


def test_a_profile_shows_each_column_with_its_shape(telco):
    shown = profile(
        telco.select("contract", "tenure").with_columns(empty=pl.lit(None, pl.Float64))
    )._repr_html_()
    assert (
        shown.count("<img") == 2
        and "7,043 rows" in shown
        and "Month-to-month" in shown
        and "100.0%" in shown
    )
    wide = profile(pl.DataFrame({f"c{i:02}": [i] for i in range(53)}))._repr_html_()
    assert wide.count("<tr>") == 51 and "and 3 more" in wide


# -- the table of profiles -----------------------------------------------------------------------


def test_the_profile_of_a_slice_is_stored_once(tmp_path):
    workspace, at = create(tmp_path), datetime(2026, 1, 2, tzinfo=UTC)
    few, many = (profile(pl.DataFrame({"a": range(n)})) for n in (3, 5))
    assert (
        store.load_profile("m", settings=workspace) is None
        and store.stored_profiles(workspace).collect().is_empty()
    )
    for one in (few, many):
        store.save_profile(one, "m", "1 monday", at=at, settings=workspace)
    store.save_profile(many, "m", "1 tuesday", settings=workspace)
    rows = store.stored_profiles(workspace).select("subject", "split", "rows").collect().rows()
    assert sorted(rows) == [("m", "1 monday", 3), ("m", "1 tuesday", 5)]
    assert store.stored_profiles(workspace).filter(split="1 monday").collect()["at"].item() == at
    assert store.load_profile("m", "1 monday", settings=workspace).rows == 3
    assert (
        store.load_profile("m", settings=workspace).rows == 5
        and store.load_profile("m@1", settings=workspace) is None
    )


def test_one_module_knows_the_table_of_profiles():
    library = Path(store.__file__).parents[2]
    assert [
        f.name for f in library.rglob("*.py") if f'"{store.PROFILES_TABLE}"' in f.read_text()
    ] == ["store.py"]
