"Monitoring: what a window's questions answer, windows that lose and repeat nothing, alerts through crashes and races."
import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlops_nb import events, lake, monitoring, window
from mlops_nb.monitoring import check, open_alerts
from mlops_nb.objective import Objective
from mlops_nb.profiles import Profile, profile
from mlops_nb.serving.log import TABLES, PredictionLog
from mlops_nb.settings import create
from mlops_nb.signature import Signature

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
OBJECTIVE = Objective(name="m", question="Who leaves?", target="y", positive="Yes", key="id", protected=["sex"])


def people(n: int, seed: int, *, shift: float = 0) -> pl.DataFrame:
    "Inputs, and in `y` and `prediction` what came of them and what the model thought."
    rng = np.random.default_rng(seed)
    age, plan = rng.normal(40, 9, n) + shift, rng.choice(["a", "b", "c"], n, p=[.5, .3, .2])
    p = 1 / (1 + np.exp(-(age - 40) / 9 - (plan == "a")))
    return pl.DataFrame({"age": age, "plan": plan, "sex": rng.choice(["f", "m"], n), "lines": rng.integers(1, 4, n),
                         "since": [NOON - timedelta(days=int(d)) for d in rng.integers(0, 999, n)],
                         "prediction": p, "y": np.where(rng.random(n) < p, "Yes", "No")},
                        schema_overrides={"since": pl.Datetime("us", "UTC")})


INPUTS = people(1, 0).drop("prediction", "y").columns
TEST = people(2000, 99)
TRUTH, THOUGHT = (TEST["y"] == "Yes").to_numpy().astype(int), TEST["prediction"].to_numpy()
REPORT = {"metrics": {"roc_auc": window.measures.auc(TRUTH, THOUGHT).model_dump()}, "threshold": 0.5,
          "fairness": window.measures.fairness(TEST.select("sex"), TRUTH, THOUGHT, 0.5).to_dicts()}
REFERENCE = profile(people(4000, 98).select(INPUTS)).merge(profile(TEST.select("prediction")))
SIGNATURE = Signature.of(people(500, 97).select(INPUTS))
BUNDLE = SimpleNamespace(signature=SIGNATURE, profile=REFERENCE, objective=OBJECTIVE, report=REPORT,
                         labels=("No", "Yes"))


@pytest.fixture
def space(tmp_path, monkeypatch):
    "A workspace whose registry knows one bundle for every version."
    asked = []
    resolve = lambda ref, *, settings: asked.append(ref) or SimpleNamespace(bundle=lambda settings: BUNDLE)
    monkeypatch.setattr(monitoring.registry, "resolve", resolve)
    settings = create(tmp_path, monitor={"min_rows": 100})
    return SimpleNamespace(settings=settings, asked=asked, batch=0)


def serve(space, frame: pl.DataFrame, hour: float, *, version="1", stage="production") -> pl.DataFrame:
    "Log predictions, a second apart."
    n, space.batch = frame.height, space.batch + 1
    rows = frame.with_columns(
        prediction_id=pl.format(f"{space.batch}-{{}}", pl.int_range(n)), model_version=pl.lit(version),
        at=pl.lit(NOON + timedelta(hours=hour)) + pl.duration(seconds=pl.int_range(n)),
        signature=pl.lit(SIGNATURE.digest), stage=pl.lit(stage),
        inputs=pl.struct(INPUTS).struct.json_encode(), probability="prediction", latency_ms=pl.lit(2.0),
        prediction=pl.lit("Yes")).select(pl.col(c).cast(t) for c, t in TABLES["_predictions"].items())
    lake.append(space.settings.table("_predictions", "m"), rows)
    return rows.with_columns(y=frame["y"])


def tell(space, rows: pl.DataFrame, hour: float) -> None:
    "Labels come."
    at = pl.lit(NOON + timedelta(hours=hour)).cast(pl.Datetime("us", "UTC"))
    lake.append(space.settings.table("_feedback", "m"), rows.select("prediction_id", at=at, label="y"))


def look(space, hour: float) -> monitoring.Monitoring:
    return check("m", settings=space.settings, now=NOON + timedelta(hours=hour))


def kinds(space) -> list[str]:
    return events.history(space.settings.events, "m").collect()["kind"].to_list()


def judged(frame: pl.DataFrame, labels: bool = True, report: dict = REPORT, **changes) -> window.Verdict:
    labelled = frame.with_columns(label=(pl.col("y") == "Yes").cast(pl.Int64)).drop("y")
    return window.judge(frame.drop("y"), labelled if labels else labelled.clear(), REFERENCE,
                        OBJECTIVE.model_copy(update=changes), report)


def alarms(found: window.Verdict) -> set[tuple[str, str]]: return {(a["kind"], a["column"]) for a in found.alarms}


# -- the questions ------------------------------------------------------------------------------------------------

def test_quiet_windows_stay_quiet():
    false = [seed for seed in range(80) if judged(people(600, seed)).alarms]
    assert len(false) <= 3, false


def test_what_changed_is_named_and_nothing_else():
    frame = people(1000, 1)
    assert alarms(judged(frame.with_columns(age=pl.col("age") + 5))) >= {("drift", "age")}
    assert alarms(judged(frame.with_columns(plan=pl.lit("a")))) == {("drift", "plan")}
    assert ("unseen", "plan") in alarms(judged(frame.with_columns(
        plan=pl.when(pl.int_range(pl.len()) < 8).then(pl.lit("z")).otherwise("plan"))))
    assert alarms(judged(frame.with_columns(age=pl.when(pl.int_range(pl.len()) < 9).then(500.0).otherwise("age")))) == {
        ("range", "age")}
    assert ("nulls", "lines") in alarms(judged(frame.with_columns(
        lines=pl.when(pl.int_range(pl.len()) < 9).then(None).otherwise("lines"))))
    assert alarms(judged(frame.drop("lines").with_columns(lines=pl.lit("2")))) == {("schema", "lines")}


def test_one_strange_value_is_no_alarm():
    frame, first = people(1000, 2), pl.int_range(pl.len()) == 0
    strange = frame.with_columns(age=pl.when(first).then(500.0).otherwise("age"),
                                 plan=pl.when(first).then(pl.lit("z")).otherwise("plan"),
                                 lines=pl.when(first).then(None).otherwise("lines"))
    found = judged(strange)
    assert not found.alarms
    assert {q["kind"] for q in found.table.to_dicts() if q["value"] == 1 and q["reference"] == 0} == {"range", "unseen"}


def test_a_prediction_without_probability_is_a_fault():
    for wrong in (None, float("nan"), 1.5, -0.1):
        frame = people(300, 3).with_columns(prediction=pl.when(pl.int_range(pl.len()) == 0).then(wrong)
                                            .otherwise("prediction").cast(pl.Float64))
        assert alarms(judged(frame)) == {("errors", "prediction")}


def test_performance_is_judged_only_with_labels_of_both_classes():
    frame = people(400, 4)
    coin = frame.with_columns(y=pl.Series(np.random.default_rng(0).choice(["Yes", "No"], 400)))
    assert ("performance", "roc_auc") in alarms(judged(coin))
    assert judged(coin, labels=False).labelled == 0
    for found in (judged(coin, labels=False), judged(frame.with_columns(y=pl.lit("Yes"))),
                  judged(coin, report={"passed": True})):
        assert "performance" not in found.table["kind"]


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "brier", "log_loss"])
def test_worse_is_worse_in_every_metric(metric):
    expected = window.measures.measured(TRUTH, THOUGHT).interval(metric)
    report = REPORT | {"metrics": {metric: expected.model_dump()}}
    frame = people(800, 5)
    assert ("performance", metric) not in alarms(judged(frame, report=report, metric=metric))
    flipped = frame.with_columns(y=pl.when(pl.col("y") == "Yes").then(pl.lit("No")).otherwise(pl.lit("Yes")))
    assert ("performance", metric) in alarms(judged(flipped, report=report, metric=metric))


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "brier", "log_loss"])
def test_a_model_that_is_no_worse_is_called_worse_by_luck_only(metric):
    "A p-value below 0.05 in 5 of 100 windows, of 300 labelled rows, against a test split of 1,000."
    low = 0
    for seed in range(120):
        test, now = people(1000, 1000 + seed), people(300, 5000 + seed)
        truth = [(f["y"] == "Yes").to_numpy().astype(int) for f in (test, now)]
        expected = window.measures.measured(truth[0], test["prediction"].to_numpy()).interval(metric)
        labelled = now.with_columns(label=pl.Series(truth[1]))
        question, = window.performance(labelled, OBJECTIVE.model_copy(update={"metric": metric}),
                                       {"metrics": {metric: expected.model_dump()}})
        low += question["p_value"] < 0.05
    assert low <= 15                                              # 6 expected, 15 by chance in 1 of 1,000


def test_unequal_treatment_alarms_against_the_report_or_what_is_accepted():
    frame = people(1000, 6)
    unequal = frame.with_columns(prediction=pl.when(pl.col("sex") == "f").then(pl.col("prediction") ** 0.2)
                                 .otherwise("prediction"))
    assert ("fairness", "sex") in alarms(judged(unequal))
    accepted = {f"{m}_gap": 1.0 for m in ("selection_rate", "tpr", "fpr")}
    assert ("fairness", "sex") not in alarms(judged(unequal, accept=accepted))
    assert ("fairness", "sex") not in alarms(judged(frame, accept={"selection_rate_gap": 0.05}))
    assert "fairness" not in judged(frame, protected=()).table["kind"]


@given(n=st.integers(1, 60), m=st.integers(1, 60), data=st.data())
def test_exceedances_are_a_distribution(n, m, data):
    from math import comb
    k = data.draw(st.integers(0, n))
    assert window.exceeding(k, n, m) == pytest.approx(comb(n, k) / comb(n + m, k))


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.fixed_dictionaries({name: st.none() | values for name, values in {
    "a": st.integers(-2**60, 2**60), "b": st.floats(-1e9, 1e9), "c": st.text(), "d": st.booleans(),
    "e": st.dates(datetime(1900, 1, 1).date()), "f": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),
}.items()}), min_size=1))
def test_inputs_come_back_as_they_were(rows):
    schema = pl.Schema({"a": pl.Int64, "b": pl.Float64, "c": pl.String, "d": pl.Boolean, "e": pl.Date,
                        "f": pl.Datetime("us", "UTC")})
    frame = pl.DataFrame(rows, schema=schema)
    log = frame.select(inputs=pl.struct(pl.all()).struct.json_encode(), probability=pl.lit(0.5))
    assert window.decoded(log, schema).drop("prediction").equals(frame)


# -- windows ------------------------------------------------------------------------------------------------------

def test_no_traffic_and_too_little_get_no_verdict_and_wait(space):
    nothing = look(space, 0)
    assert (nothing.rows, nothing.quiet, nothing.report) == (0, None, None)
    assert "No verdict" in nothing._repr_html_()
    serve(space, people(60, 1), hour=0)
    assert look(space, 1).quiet is None and kinds(space) == []
    serve(space, people(60, 2), hour=1)
    assert look(space, 2).rows == 120


def test_every_prediction_is_in_one_window_whenever_its_row_came(space):
    expected, rng, counted = 0, np.random.default_rng(0), []
    for hour in range(4):
        for _ in range(3):  # replicas' rows reach the table in any order, up to an hour late
            serve(space, people(60, int(rng.integers(1000))), hour=hour - rng.random() * 0.9)
            expected += 60
        counted.append(look(space, hour + 0.5).rows)
    assert sum(counted) == expected and min(counted) >= 100


def test_a_vacuumed_version_only_loses_what_was_late(space):
    serve(space, people(150, 1), hour=0)
    look(space, 1)
    serve(space, people(150, 2), hour=2)
    serve(space, people(5, 3), hour=-0.1)
    table = space.settings.table("_predictions", "m")
    DeltaTable(table).optimize.compact()
    DeltaTable(table).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert look(space, 3).rows == 150


def test_staging_does_not_count_and_the_busiest_version_is_judged(space):
    serve(space, people(500, 1, shift=50), hour=0, stage="staging")
    serve(space, people(300, 2), hour=1, version="2")
    serve(space, people(120, 3), hour=1, version="1")
    found = look(space, 3)
    assert (found.version, found.rows, found.versions) == ("2", 300, {"2": 300, "1": 120}) and found.quiet
    assert space.asked == ["m/2"]


def test_labels_of_earlier_windows_count_when_they_come_and_the_last_one_counts(space):
    rows = serve(space, people(400, 1), hour=0)
    assert look(space, 1).found.labelled == 0
    tell(space, rows[:50], hour=2)
    serve(space, people(120, 2), hour=2)
    assert look(space, 3).found.labelled == 0  # too few: they wait
    tell(space, rows[50:].with_columns(y=pl.lit("No")), hour=4)
    tell(space, rows[50:], hour=5)
    serve(space, people(120, 3), hour=5)
    found = look(space, 6)
    assert found.found.labelled == 400
    assert found.table.filter(pl.col("kind") == "performance")["value"].item() == pytest.approx(
        window.measures.auc((rows["y"] == "Yes").to_numpy().astype(int), rows["probability"].to_numpy()).value)
    serve(space, people(120, 4), hour=7)
    assert look(space, 8).found.labelled == 0  # used once


def test_labels_of_no_class_and_of_unknown_predictions_are_left_out(space):
    rows = serve(space, people(300, 1), hour=0)
    tell(space, rows[:100].with_columns(y=pl.lit("Perhaps")), hour=0)
    tell(space, rows[100:250], hour=0)
    tell(space, rows[250:].with_columns(prediction_id=pl.format("x{}", "prediction_id")), hour=0)
    assert look(space, 1).found.labelled == 150


def test_what_replicas_acknowledged_is_waited_for(space):
    log = PredictionLog(space.settings, "m").start()
    try:
        frame = people(150, 1)
        every = {"model_version": "1", "signature": "s", "prediction": "Yes", "latency_ms": 1.0, "stage": "production"}
        log.append({k: [v] * 150 for k, v in every.items()} | {
            "prediction_id": [f"w{i}" for i in range(150)], "at": [1_770_000_000_000_000 + i for i in range(150)],
            "inputs": frame.select(pl.struct(INPUTS).struct.json_encode()).to_series().to_list(),
            "probability": frame["prediction"].to_list()})
        assert check("m", settings=space.settings).rows == 150
    finally: log.close()


# -- what is remembered -------------------------------------------------------------------------------------------

def test_profile_report_and_event_of_a_window(space):
    serve(space, people(300, 1, shift=9), hour=0)
    found = look(space, 1)
    kept = lake.scan(space.settings.table("_profiles")).collect().row(0, named=True)
    assert kept["subject"] == "m" and kept["rows"] == 300 and kept["at"] == found.window[1]
    assert Profile.from_bytes(kept["profile"]).columns == sorted([*INPUTS, "prediction"])
    event = events.newest(space.settings.events, "monitored", "m")["details"]
    assert Path(event["report"]) == found.report and found.report.parent.parent.name == "m"
    facts = json.loads((found.report.parent / "report.json").read_text())
    assert facts["rows"] == event["rows"] == 300 and len(facts["questions"]) == found.table.height
    assert "drift of age" in found.report.read_text().replace("\n", " ")


def test_alerts_open_once_propose_once_and_close(space):
    serve(space, people(300, 1, shift=9), hour=0)
    first = look(space, 1)
    opened = open_alerts("m", settings=space.settings)
    assert {(a["kind"], a["column"]) for a in opened} == {(a["kind"], a["column"]) for a in first.alerts}
    json.dumps(opened)
    proposal = events.newest(space.settings.events, "retraining_proposed", "m")
    assert set(proposal["details"]["because"]) == {a["id"] for a in opened if a["kind"] == "drift"}
    serve(space, people(300, 2, shift=9), hour=2)
    assert not look(space, 3).quiet and open_alerts("m", settings=space.settings) == opened
    assert events.newest(space.settings.events, "retraining_proposed", "m")["id"] == proposal["id"]
    serve(space, people(50, 3), hour=4)
    look(space, 5)
    assert open_alerts("m", settings=space.settings) == opened  # too few rows to be quiet
    serve(space, people(300, 4), hour=6)
    assert look(space, 7).quiet and open_alerts("m", settings=space.settings) == []
    serve(space, people(300, 5, shift=9), hour=8)
    look(space, 9)
    assert len(open_alerts("m", settings=space.settings)) == len(opened)
    assert kinds(space).count("retraining_proposed") == 2


def test_a_performance_alert_stays_open_without_labels(space):
    rows = serve(space, people(400, 1), hour=0)
    tell(space, rows.with_columns(y=pl.when(pl.col("y") == "Yes").then(pl.lit("No")).otherwise(pl.lit("Yes"))), hour=0)
    assert ("performance", "roc_auc") in {(a["kind"], a["column"]) for a in look(space, 1).alerts}
    serve(space, people(400, 2), hour=2)
    assert look(space, 3).quiet
    assert "performance" in {a["kind"] for a in open_alerts("m", settings=space.settings)}


@pytest.mark.parametrize("dies_at", range(8))
def test_a_pass_that_dies_anywhere_is_made_good_by_the_next(space, monkeypatch, dies_at):
    serve(space, people(300, 1, shift=9), hour=0)
    record, append, count = events.record, lake.append, iter(range(100))

    def mortal(step):
        def call(*args, **options):
            if next(count) == dies_at: raise RuntimeError("killed")
            return step(*args, **options)
        return call

    with monkeypatch.context() as patch:
        patch.setattr(monitoring.events, "record", mortal(record))
        patch.setattr(monitoring.lake, "append", mortal(append))
        try: look(space, 1)
        except RuntimeError: pass
    look(space, 2)
    found = open_alerts("m", settings=space.settings)
    log = kinds(space)
    assert len(found) == len({(a["kind"], a["column"]) for a in found}) == log.count("alert_opened") > 0
    assert (log.count("monitored"), log.count("retraining_proposed"), log.count("alert_closed")) == (1, 1, 0)
    assert events.newest(space.settings.events, "monitored", "m")["details"]["rows"] == 300
    because = events.newest(space.settings.events, "retraining_proposed", "m")["details"]["because"]
    assert set(because) <= {a["id"] for a in found if a["kind"] == "drift"}
    assert lake.scan(space.settings.table("_profiles")).collect().height == 1


def test_of_two_passes_at_once_one_gives_way(space):
    serve(space, people(300, 1, shift=9), hour=0)
    barrier, ended = threading.Barrier(2), []

    def one():
        barrier.wait()
        try: ended.append(look(space, 1).rows)
        except events.Conflict: ended.append("conflict")

    threads = [threading.Thread(target=one) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    look(space, 2)
    log = kinds(space)
    assert log.count("monitored") == 1
    assert log.count("alert_opened") == len(open_alerts("m", settings=space.settings))


# -- telling ------------------------------------------------------------------------------------------------------

@pytest.fixture
def receiver():
    "An HTTP server that remembers what it was told, and fails as often as it should."
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            told.failures -= 1
            self.send_response(500 if told.failures >= 0 else 204)
            self.end_headers()
        def log_message(self, *args): pass
    server = HTTPServer(("127.0.0.1", 0), Handler)
    told = SimpleNamespace(bodies=[], failures=0, url=f"http://127.0.0.1:{server.server_port}/hook")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


def hooked(space, url: str):
    settings = space.settings
    space.settings = settings.model_copy(update={"alerts": settings.alerts.model_copy(update={"webhook": url})})
    return space


def test_alerts_are_posted_once(space, receiver):
    hooked(space, receiver.url)
    receiver.failures = 1
    for hour in (0, 2):
        serve(space, people(300, hour, shift=9), hour=hour)
        look(space, hour + 1)
    assert len(receiver.bodies) == 2 and receiver.bodies[0] == receiver.bodies[1]  # once refused, once accepted
    told = {(a["kind"], a["column"]) for a in receiver.bodies[1]["alerts"]}
    assert ("drift", "age") in told and receiver.bodies[1]["model"] == "m"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/closed", "nonsense", "http://[bad"])
def test_a_webhook_that_fails_is_recorded_and_not_fatal(space, url):
    hooked(space, url)
    serve(space, people(300, 1, shift=9), hour=0)
    assert look(space, 1).alerts
    assert events.newest(space.settings.events, "notified", "m")["details"]["error"]
    assert kinds(space).count("monitored") == 1


def test_quiet_windows_tell_nobody(space, receiver):
    hooked(space, receiver.url)
    serve(space, people(300, 1), hour=0)
    assert look(space, 1).quiet and receiver.bodies == []


def test_the_page_escapes_what_customers_sent(space):
    evil = people(300, 1).with_columns(plan=pl.lit("<script>alert(1)</script>"))
    serve(space, evil, hour=0)
    found = look(space, 1)
    assert not found.quiet and "<script>alert" not in found.report.read_text() + found._repr_html_()
    assert "&lt;script&gt;" in found.report.read_text()
