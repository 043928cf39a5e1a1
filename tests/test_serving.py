"What a replica promises: nothing acknowledged is lost or doubled, no client brings it down."

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import orjson
import polars as pl
import pytest
from conftest import panic
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.core import data_files, lake
from mlops_nb.core.errors import InputError, LakeError, Refused
from mlops_nb.core.sections import ServeSection
from mlops_nb.core.settings import create
from mlops_nb.science.signature import Signature, plainly_fits
from mlops_nb.science.task import Binary, Multiclass, Regression
from mlops_nb.service.serving import Handlers, application_of, protocols
from mlops_nb.service.serving.log import (
    TABLES,
    PredictionLog,
    Segment,
    append_frame,
    read_frames,
    recover,
    take_over,
    with_checksum,
)
from mlops_nb.service.serving.predictor import PredictRequest
from mlops_nb.service.serving.versions import Desired, ServedTraffic


@pytest.fixture
def settings(tmp_path):
    return create(tmp_path / "workspace", serve={"flush_seconds": "0.05", "max_rows": "5"})


def label(n: int, first: int = 0) -> dict:
    return {
        "prediction_id": [f"{i}" for i in range(first, first + n)],
        "at": [0] * n,
        "label": ["Yes"] * n,
    }


def kept(log: PredictionLog) -> list[str]:
    return (
        sorted(lake.scan(log.table).collect()["prediction_id"])
        if lake.table_exists(log.table)
        else []
    )


# ---- frames


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
def test_a_torn_tail_costs_only_the_torn_frame(payloads, data):
    whole = b"".join(map(with_checksum, payloads))
    cut = data.draw(st.integers(0, len(whole)))
    found, end, damaged = read_frames(io.BytesIO(whole[:cut]), 0)
    assert found == payloads[: len(found)] and not damaged
    assert end == len(b"".join(map(with_checksum, found))) <= cut
    assert len(found) == len(payloads) or cut - end < len(with_checksum(payloads[len(found)]))


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=4), st.data())
def test_a_flipped_bit_is_never_read_as_a_payload(payloads, data):
    whole = bytearray(b"".join(map(with_checksum, payloads)))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found, _, _ = read_frames(io.BytesIO(bytes(whole)), 0)
    assert found == payloads[: len(found)] and len(found) < len(payloads)


def test_zeros_that_a_power_cut_leaves_are_damage():
    assert read_frames(io.BytesIO(with_checksum(b"one") + bytes(64)), 0) == ([b"one"], 11, True)


# ---- segments


def test_a_short_write_is_undone(settings, tmp_path, monkeypatch):
    segment = Segment.create(tmp_path)
    append_frame(segment, b"kept")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    with pytest.raises(OSError, match="no room"):
        append_frame(segment, b"lost")
    monkeypatch.undo()
    append_frame(segment, b"after")
    assert read_frames(open(segment.path, "rb"), 0)[0] == [b"kept", b"after"]


def test_a_living_owner_is_left_alone(settings):
    log = PredictionLog(settings, "churn", "_feedback")
    log.append(label(1))
    assert recover("churn", settings=settings) == 0 and kept(log) == []
    assert log.close() == 1 and kept(log) == ["0"]


def test_an_append_after_close_fails_and_writes_nowhere(settings):
    log = PredictionLog(settings, "churn", "_feedback")
    log.close()
    with pytest.raises(OSError):
        log.append(label(1))


def test_a_damaged_log_keeps_its_file(settings):
    log = PredictionLog(settings, "churn", "_feedback")
    log.append(label(2))
    os.write(log.segment.fd, with_checksum(b"bad").replace(b"bad", b"bed"))
    log.close()
    assert kept(log) == ["0", "1"]
    assert [p.suffix for p in log.folder.iterdir()] == [".damaged"]


def test_a_grown_log_is_rotated_and_removed(settings):
    log = PredictionLog(settings, "churn", "_feedback", rotate=100)
    for i in range(20):
        log.append(label(3, first=3 * i))
        if i % 5 == 0:
            log.flush()
    log.flush()
    assert len(kept(log)) == 60 == len(set(kept(log))) and len(list(log.folder.iterdir())) == 1


def test_a_commit_whose_answer_was_lost_is_not_repeated(settings, monkeypatch):
    log = PredictionLog(settings, "churn", "_feedback")
    log.append(label(2))
    real = lake.append

    def lossy(*args, **kwargs):
        real(*args, **kwargs)
        raise OSError("the connection broke after the commit")

    monkeypatch.setattr(lake, "append", lossy)
    with pytest.raises(OSError):
        log.flush()
    monkeypatch.undo()
    log.append(label(1, first=2))
    assert log.flush() == 1 and kept(log) == ["0", "1", "2"]


def test_an_unreachable_table_is_said_and_caught_up_with(settings, monkeypatch):
    log = PredictionLog(settings, "churn", "_feedback").start()

    def refuse(*args, **kwargs):
        raise OSError("no route to the bucket")

    monkeypatch.setattr(lake, "append", refuse)
    log.append(label(1))
    wait(lambda: log.trouble)
    assert "no route" in log.trouble
    monkeypatch.undo()
    wait(lambda: kept(log))
    log.close()
    assert kept(log) == ["0"] and log.trouble is None


def wait(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.02)


CHILD = textwrap.dedent("""
    import os, sys
    from mlops_nb.core.settings import load_settings
    from mlops_nb.service.serving.log import PredictionLog
    log, name = PredictionLog(load_settings(sys.argv[1]), "churn", "_feedback").start(), sys.argv[2]
    for i in range(1_000_000):
        log.append({"prediction_id": [f"{name}-{i}"], "at": [0], "label": ["Yes"]})
        os.write(1, f"{name}-{i}\\n".encode())   # the acknowledgement
""")


@pytest.mark.chaos
def test_kill_9_loses_and_doubles_nothing(settings, round_):
    "Two owners and two racing takers; each owner is killed while it appends and moves."
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, settings.root, f"{round_}{c}"], stdout=subprocess.PIPE
        )
        for c in "ab"
    ]
    acknowledged = [[], []]
    readers = [
        threading.Thread(target=lambda c=c, into=into: into.extend(c.stdout))
        for c, into in zip(children, acknowledged, strict=True)
    ]
    for r in readers:
        r.start()
    wait(lambda: all(len(a) > 500 for a in acknowledged), seconds=60)
    time.sleep(0.13 * round_)
    for c in children:
        os.kill(c.pid, signal.SIGKILL)
    for c, r in zip(children, readers, strict=True):
        c.wait(), r.join()
    takers = [
        threading.Thread(target=recover, args=("churn",), kwargs={"settings": settings})
        for _ in range(2)
    ]
    for t in takers:
        t.start()
    for t in takers:
        t.join()
    recover("churn", settings=settings)
    table = lake.scan(settings.table("_feedback", "churn")).collect()["prediction_id"]
    promised = {line.decode().strip() for a in acknowledged for line in a if line.endswith(b"\n")}
    assert table.n_unique() == len(table), "a row is there twice"
    assert promised <= set(table), "an acknowledged row is missing"
    assert len(table) - len(promised) <= 2, "more than the one unanswered append of each owner"
    assert not list((settings.state / "wal" / "churn" / "_feedback").iterdir())


# ---- protocols and the endpoint

SIGNATURE = Signature.of(
    pl.DataFrame({"tenure": [1, None], "charges": [1.0, 2.0], "contract": ["a", "b"]})
)
JSON = {"content-type": "application/json"}


class Model:
    "The least a served version can be."

    other_framework = {}

    def __init__(self, version, task=None):
        self.version, self.signature = version, SIGNATURE
        self.task = task or Binary(labels=("No", "Yes"))

    def predict(self, frame):
        if (frame["charges"] > 1e6).any():
            raise RuntimeError("the model broke")
        return constant(self.task, frame.height)


def constant(task, rows):
    "A prediction of each row: three quarters for the last label, or the number 250."
    if not task.labels:
        return task.with_intervals(np.full(rows, 250.0))
    others = [0.25 / (len(task.labels) - 1)] * (len(task.labels) - 1)
    return task.decided(np.tile([*others, 0.75], (rows, 1)))


class Fixed:
    "Versions without a registry."

    def __init__(self, settings, shadow=(), tasks=()):
        self.settings, self.model, self.fixed = settings, "churn", None
        by_version = dict(zip(("4", *shadow), tasks, strict=False))
        served = {v: Model(v, by_version.get(v)) for v in ("4", *shadow)}
        self.traffic = ServedTraffic(Desired({"4": 100}, {}, shadow=tuple(shadow)), served)


def client(settings, *, shadow=(), token=None, tasks=()):
    logs = PredictionLog(settings, "churn"), PredictionLog(settings, "churn", "_feedback")
    endpoint = Handlers(Fixed(settings, shadow, tasks), *logs)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    transport = httpx.ASGITransport(application_of(endpoint), raise_app_exceptions=False)
    return endpoint, httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers
    )


def ask(client, *requests):
    async def all_of_them():
        async with client:
            return [await client.request(method, path, **kw) for method, path, kw in requests]

    return asyncio.run(all_of_them())


GOOD = {"tenure": 3, "charges": 20.5, "contract": "a"}


def test_an_answer_is_in_the_log_before_it_is_sent(settings):
    endpoint, http = client(settings)
    (answer,) = ask(
        http,
        ("POST", "/predict", {"json": {"rows": [GOOD, {"charges": 1, "contract": "never seen"}]}}),
    )
    endpoint.log.flush()
    rows = lake.scan(endpoint.log.table).collect()
    assert answer.status_code == 200 and answer.json()["model_version"] == "4"
    assert [p["prediction_id"] for p in answer.json()["predictions"]] == rows[
        "prediction_id"
    ].to_list()
    assert answer.json()["predictions"][0] | {"prediction_id": ""} == {
        "prediction": "Yes",
        "probability": 0.75,
        "prediction_id": "",
        "model_version": "4",
    }
    logged = [orjson.loads(i) for i in rows["inputs"]]
    assert logged == [GOOD, {"tenure": None, "charges": 1.0, "contract": "never seen"}]
    assert set(rows["stage"]) == {"production"} and set(rows["signature"]) == {SIGNATURE.digest}
    assert rows["latency_ms"].min() > 0


BAD = {
    "not JSON": (400, {"content": b"{rows", "headers": JSON}),
    "NaN": (400, {"content": b'{"rows":[{"charges":NaN}]}', "headers": JSON}),
    "beyond a double": (400, {"content": b'{"rows":[{"charges":1e999}]}', "headers": JSON}),
    "not UTF-8": (400, {"content": b'{"rows":[{"contract":"\xff"}]}', "headers": JSON}),
    "deeply nested": (400, {"content": b"[" * 100_000, "headers": JSON}),
    "a form": (415, {"data": {"rows": "1"}}),
    "no content type": (415, {"content": b'{"rows":[]}'}),
    "a list": (400, {"json": [GOOD]}),
    "another key": (400, {"json": {"rows": [GOOD], "colour": "red"}}),
    "rows no list": (400, {"json": {"rows": GOOD}}),
    "no rows": (422, {"json": {"rows": []}}),
    "a row no object": (422, {"json": {"rows": [3]}}),
    "too many rows": (413, {"json": {"rows": [GOOD] * 6}}),
    "too large": (413, {"content": b" " * ((1 << 25) + 1), "headers": JSON}),
    "missing column": (422, {"json": {"rows": [{"tenure": 1, "charges": 1.0}]}}),
    "wrong type": (422, {"json": {"rows": [GOOD, GOOD | {"charges": "much"}]}}),
    "unknown column": (422, {"json": {"rows": [GOOD | {"tenur": 1}]}}),
    "beyond 64 bits": (422, {"json": {"rows": [GOOD | {"tenure": 2**64 - 1}]}}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_reason_and_harms_nobody(settings, case):
    status, request = BAD[case]
    endpoint, http = client(settings)
    refused, good = ask(
        http, ("POST", "/predict", request), ("POST", "/predict", {"json": {"rows": [GOOD]}})
    )
    assert refused.status_code == status, refused.text
    assert len(refused.json()["error"]["message"]) > 20
    assert good.status_code == 200
    assert endpoint.log.flush() == 1


def test_a_refusal_names_row_column_expected_and_got(settings):
    _, http = client(settings)
    (answer,) = ask(
        http, ("POST", "/predict", {"json": {"rows": [GOOD, GOOD | {"charges": "much"}]}})
    )
    error = answer.json()["error"]
    assert (error["row"], error["column"], error["got"]) == (
        1,
        "charges",
        '"much"',
    ) and "number" in error["expected"]


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_do_anything_but_refuse(body):
    with pytest.raises(Refused) as refused:
        protocols.read_rows(body, "application/json", limit=3)
    assert 400 <= refused.value.status < 500


def test_one_request_that_breaks_the_model_spares_its_batch(settings):
    endpoint, _ = client(settings)
    served = endpoint.versions.traffic.choose()
    rows = [[GOOD], [GOOD | {"charges": 1e9}], [GOOD, GOOD]]
    answers = asyncio.run(endpoint.predictor.answer([PredictRequest(served, r, 0.0) for r in rows]))
    assert [type(a).__name__ for a in answers] == ["bytes", "RuntimeError", "bytes"]
    assert endpoint.log.flush() == 3


def test_a_broken_model_is_a_500_with_an_id_and_no_traceback(settings):
    _, http = client(settings)
    broken, good = ask(
        http,
        ("POST", "/predict", {"json": {"rows": [GOOD | {"charges": 1e9}]}}),
        ("POST", "/predict", {"json": {"rows": [GOOD]}}),
    )
    assert (
        broken.status_code == 500
        and broken.json()["error"]["id"]
        and "RuntimeError" not in broken.text
    )
    assert good.status_code == 200


def test_what_cannot_be_logged_is_not_answered(settings):
    endpoint, http = client(settings)
    endpoint.log.close()
    (answer,) = ask(http, ("POST", "/predict", {"json": {"rows": [GOOD]}}))
    assert answer.status_code == 503 and "logged" in answer.json()["error"]["message"]


def test_feedback(settings):
    endpoint, http = client(settings)
    labels = [
        {"prediction_id": i, "label": label}
        for i, label in (("a", "Yes"), ("b", "No"), ("c", "Yes"))
    ]
    good, bad = ask(
        http,
        ("POST", "/feedback", {"json": {"labels": labels}}),
        ("POST", "/feedback", {"json": {"labels": [{"prediction_id": "a"}]}}),
    )
    assert good.json() == {"accepted": 3} and bad.status_code == 422
    endpoint.labels.flush()
    assert lake.scan(endpoint.labels.table).collect()["label"].to_list() == ["Yes", "No", "Yes"]


@pytest.mark.parametrize("word", ["yes", "Perhaps", 1, True, 1.5, None, ["Yes"], {}])
def test_a_word_that_is_no_label_is_refused_and_the_labels_are_named(settings, word):
    "Also about an unknown prediction: it may be another replica's, the word is wrong in any case."
    endpoint, http = client(settings)
    labels = [{"prediction_id": "a", "label": "Yes"}, {"prediction_id": "nowhere", "label": word}]
    (refused,) = ask(http, ("POST", "/feedback", {"json": {"labels": labels}}))
    error = refused.json()["error"]
    assert refused.status_code == 422 and (error["row"], error["column"], error["expected"]) == (
        1,
        "label",
        "No or Yes",
    )
    assert "is no label of this model, expected No or Yes" in error["message"]
    endpoint.labels.flush()
    assert not lake.table_exists(endpoint.labels.table), "a part of a refused request was kept"


def test_labels_of_earlier_versions_may_still_be_reported(settings):
    endpoint, http = client(settings)
    earlier = (Binary(labels=("stays", "leaves")),)
    endpoint.versions.traffic = replace(endpoint.versions.traffic, earlier=earlier)
    labels = [{"prediction_id": "a", "label": "leaves"}, {"prediction_id": "b", "label": "No"}]
    good, spec = ask(
        http, ("POST", "/feedback", {"json": {"labels": labels}}), ("GET", "/openapi.json", {})
    )
    assert good.json() == {"accepted": 2}
    answer = spec.json()["paths"]["/predict"]["post"]["responses"]["200"]["content"][
        "application/json"
    ]["schema"]
    kinds = answer["properties"]["predictions"]["items"]["anyOf"]
    assert [kind["properties"]["prediction"]["enum"] for kind in kinds] == [
        ["No", "Yes", None],
        ["stays", "leaves", None],
    ]


# ---- tasks

ISLAND = Multiclass(labels=("1", "2", "3"))
PRICE = Regression(half_width=50.0)
ROWS = ("POST", "/predict", {"json": {"rows": [GOOD, GOOD]}})


def first_of(answer) -> dict:
    "The first prediction of an answer, without its id."
    first = answer.json()["predictions"][0]
    return {name: value for name, value in first.items() if name != "prediction_id"}


def test_an_answer_of_several_classes_has_all_probabilities_and_so_has_the_log(settings):
    endpoint, http = client(settings, tasks=[ISLAND])
    (answer,) = ask(http, ROWS)
    assert first_of(answer) == {
        "prediction": "3",
        "probability": 0.75,
        "probabilities": {"1": 0.125, "2": 0.125, "3": 0.75},
        "model_version": "4",
    }
    endpoint.log.flush()
    rows = lake.scan(endpoint.log.table).collect()
    assert rows["scores"].to_list() == [[0.125, 0.125, 0.75]] * 2
    assert rows["number"].null_count() == 2
    assert ISLAND.from_log(rows).scores.tolist() == rows["scores"].to_list()


def test_an_answer_of_a_regression_is_a_number_with_its_interval_and_so_is_the_log(settings):
    endpoint, http = client(settings, tasks=[PRICE])
    (answer,) = ask(http, ROWS)
    assert first_of(answer) == {
        "prediction": 250.0,
        "low": 200.0,
        "high": 300.0,
        "model_version": "4",
    }
    endpoint.log.flush()
    rows = lake.scan(endpoint.log.table).collect()
    logged = rows.select("prediction", "probability", "number", "low", "high").row(0)
    assert logged == ("250", None, 250.0, 200.0, 300.0) and rows["scores"].null_count() == 2
    assert PRICE.from_log(rows).numbers.tolist() == [250.0, 250.0]


def test_the_answer_to_a_binary_row_is_what_it_always_was(settings):
    _, http = client(settings)
    (answer,) = ask(http, ("POST", "/predict", {"json": {"rows": [GOOD]}}))
    id_ = answer.json()["predictions"][0]["prediction_id"]
    assert answer.text == (
        '{"predictions":[{"prediction":"Yes","probability":0.75,'
        f'"prediction_id":"{id_}","model_version":"4"}}],"model_version":"4"}}'
    )


@pytest.mark.parametrize(
    "task, value, number",
    [
        (Binary(labels=("No", "Yes")), np.array([[np.nan, np.nan], [0.2, 0.8]]), 1),
        (ISLAND, np.array([[0.3, np.nan, 0.1], [0.2, 0.1, 0.7]]), 1),
        (PRICE, np.array([np.inf, 1.0]), 1),
    ],
)
def test_a_prediction_that_is_none_gets_no_label_and_is_logged(
    settings, caplog, task, value, number
):
    "JSON has no NaN. A label that follows from it would look like an answer."
    endpoint, http = client(settings, tasks=[task])
    model = endpoint.versions.traffic.choose()
    model.predict = lambda _: task.decided(value) if task.labels else task.with_intervals(value)
    (answer,) = ask(http, ROWS)
    first, second = answer.json()["predictions"]
    assert first["prediction"] is None and second["prediction"] is not None
    endpoint.log.flush()
    rows = lake.scan(endpoint.log.table).collect()
    assert task.usable(task.from_log(rows)).tolist() == [False, True]
    assert rows["prediction"].to_list()[0] is None
    assert f"version 4: {number} of 2 predictions are unusable" in caplog.text


def reported(http, *labels) -> list:
    "The answers to a report of each label."
    posts = [{"labels": [{"prediction_id": "a", "label": label}]} for label in labels]
    return ask(http, *(("POST", "/feedback", {"json": post}) for post in posts))


def test_labels_of_several_classes_are_taken_in_every_spelling(settings):
    endpoint, http = client(settings, tasks=[ISLAND])
    *good, unknown, nothing = reported(http, "1", 2, 3.0, "3.0", 4, None)
    assert [a.status_code for a in good] == [200] * 4
    assert [a.json()["error"]["expected"] for a in (unknown, nothing)] == ["1 or 2 or 3"] * 2
    endpoint.labels.flush()
    labels = lake.scan(endpoint.labels.table).collect().sort("at")["label"]
    assert labels.to_list() == ["1", "2", "3", "3"]
    assert ISLAND.parse(labels).to_list() == [0, 1, 2, 2]


def test_labels_of_a_regression_are_finite_numbers(settings):
    endpoint, http = client(settings, tasks=[PRICE])
    *good, word, flag, infinite, nothing = reported(
        http, 12.50, "1e2", 7, "many", True, "inf", None
    )
    assert [a.status_code for a in good] == [200] * 3
    bad = (word, flag, infinite, nothing)
    assert [a.status_code for a in bad] == [422] * 4
    assert {a.json()["error"]["expected"] for a in bad} == {"a finite number"}
    endpoint.labels.flush()
    labels = lake.scan(endpoint.labels.table).collect().sort("at")["label"]
    assert labels.to_list() == ["12.5", "100", "7"]
    assert PRICE.parse(labels).to_list() == [12.5, 100.0, 7.0]


def test_versions_of_different_tasks_answer_log_and_take_labels_beside_each_other(settings):
    tasks = [Binary(labels=("No", "Yes")), ISLAND, PRICE]
    endpoint, http = client(settings, shadow=("5", "6"), tasks=tasks)
    (answer,) = ask(http, ROWS)
    assert first_of(answer)["prediction"] == "Yes"
    endpoint.shadows.shutdown(wait=True)
    endpoint.log.flush()
    rows = lake.scan(endpoint.log.table).collect()
    for version, task in zip("456", tasks, strict=True):
        assert task.usable(task.from_log(rows.filter(model_version=version))).all()
    traffic = Fixed(settings, ("5", "6"), tasks).traffic
    assert [traffic.spelled(v) for v in ("Yes", 3.0, 12.50, "never")] == ["Yes", "3", "12.5", None]
    assert traffic.expected_label == "No or Yes or 1 or 2 or 3 or a finite number"


def test_the_documents_of_an_endpoint_name_the_answer_of_each_task(settings):
    for task, fields in (
        (ISLAND, {"prediction", "probability", "probabilities"}),
        (PRICE, {"prediction", "low", "high"}),
    ):
        _, http = client(settings, tasks=[task])
        spec, page = ask(http, ("GET", "/openapi.json", {}), ("GET", "/docs", {}))
        answer = spec.json()["paths"]["/predict"]["post"]["responses"]["200"]["content"]
        items = answer["application/json"]["schema"]["properties"]["predictions"]["items"]
        assert set(items["properties"]) == fields | {"prediction_id", "model_version"}
        assert all(f"<td>{field}</td>" in page.text for field in fields)


# ---- logs of an earlier release

ADDED = ("scores", "number", "low", "high")
OLD = {name: dtype for name, dtype in TABLES["_predictions"].items() if name not in ADDED}


def old_rows(first: int, n: int) -> dict:
    "A batch as an earlier release logged it."
    values = {"at": 0, "probability": 0.5, "latency_ms": 1.0}
    columns = {name: [values.get(name, "x")] * n for name in OLD}
    return columns | {"prediction_id": [str(i) for i in range(first, first + n)]}


def old_log(settings, first: int, n: int) -> Path:
    "A log that a replica of an earlier release left behind."
    folder = settings.state / "wal" / "churn" / "_predictions"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"old{first}.log"
    path.write_bytes(with_checksum(orjson.dumps(old_rows(first, n))))
    return path


def schema_changes(table: str) -> list[int]:
    "The versions of a table whose commit has a schema."
    commits = sorted((Path(table) / "_delta_log").glob("*.json"))
    return [i for i, commit in enumerate(commits) if '"metaData"' in commit.read_text()]


def test_a_log_of_an_earlier_release_is_taken_over_into_a_table_of_an_earlier_release(settings):
    table = settings.table("_predictions", "churn")
    lake.append(table, pl.DataFrame(old_rows(0, 2), schema=OLD))
    path = old_log(settings, 2, 3)
    assert recover("churn", settings=settings) == 3 and not path.exists()
    rows = lake.scan(table).collect()
    assert dict(rows.schema) == TABLES["_predictions"] and kept_ids(rows) == list("01234")
    assert all(rows[name].null_count() == 5 for name in ADDED)
    assert Binary(labels=("No", "Yes")).from_log(rows).positive.tolist() == [0.5] * 5
    assert schema_changes(table) == [0, 1], "the columns come with the first commit"
    assert lake.scan(table, version=0).collect().columns == list(OLD)


def kept_ids(rows: pl.DataFrame) -> list[str]:
    return sorted(rows["prediction_id"])


def test_an_upgraded_table_is_compacted_and_still_has_every_row(settings):
    table = settings.table("_predictions", "churn")
    lake.append(table, pl.DataFrame(old_rows(0, 2), schema=OLD))
    endpoint, http = client(settings, tasks=[ISLAND])
    ask(http, ROWS)
    endpoint.log.flush()
    lake.maintain(table)
    rows = lake.scan(table).collect()
    assert rows.height == 4 and rows["scores"].null_count() == 2


def test_a_replica_of_an_earlier_release_cannot_take_what_it_would_shorten(settings):
    "It looks for `*.log` only, and a table with the new columns refuses its rows."
    endpoint, http = client(settings, tasks=[ISLAND])
    ask(http, ROWS)
    assert not list(endpoint.log.folder.glob("*.log"))
    endpoint.log.flush()
    rows = pl.DataFrame(old_rows(0, 1), schema=OLD)
    with pytest.raises(LakeError, match="missing column scores"):
        lake.append(endpoint.log.table, rows)
    old_log(settings, 0, 1)
    assert endpoint.log.flush() == 1
    assert lake.scan(endpoint.log.table).collect().height == 3


def test_two_replicas_that_upgrade_a_table_at_the_same_time_change_it_once(settings):
    table = settings.table("_predictions", "churn")
    lake.append(table, pl.DataFrame(old_rows(0, 1), schema=OLD))
    logs = [PredictionLog(settings, "churn") for _ in range(4)]
    for i, log in enumerate(logs):
        log.append(old_rows(1 + i, 1))
    movers = [threading.Thread(target=log.flush) for log in logs]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    assert kept_ids(lake.scan(table).collect()) == list("01234")
    assert len(schema_changes(table)) == 2


def test_tokens_guard_everything_but_health(tmp_path):
    settings = create(tmp_path / "guarded", serve={"tokens": "alpha beta"})
    paths = [
        ("GET", "/openapi.json", {}),
        ("GET", "/docs", {}),
        ("GET", "/nowhere", {}),
        ("POST", "/predict", {"json": {"rows": [GOOD]}}),
        ("GET", "/ping", {}),
        ("GET", "/healthz", {}),
    ]
    assert [a.status_code for a in ask(client(settings)[1], *paths)] == [
        401,
        401,
        401,
        401,
        200,
        200,
    ]
    assert [a.status_code for a in ask(client(settings, token="gamma")[1], *paths)] == [
        401,
        401,
        401,
        401,
        200,
        200,
    ]
    for token in ("alpha", "beta"):
        assert [a.status_code for a in ask(client(settings, token=token)[1], *paths)] == [
            200,
            200,
            404,
            200,
            200,
            200,
        ]


def test_the_documents_come_from_the_signature(settings):
    _, http = client(settings)
    spec, page, wrong = ask(
        http, ("GET", "/openapi.json", {}), ("GET", "/docs", {}), ("GET", "/predict", {})
    )
    row = spec.json()["components"]["schemas"]["Row"]
    assert set(row["properties"]) == {c.name for c in SIGNATURE.columns} and row["required"] == [
        "charges",
        "contract",
    ]
    assert "tenure" in page.text and page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text, "nothing may come from elsewhere"
    assert wrong.status_code == 405


def test_a_shadow_sees_the_traffic_and_answers_none(settings):
    endpoint, http = client(settings, shadow=("5",))
    (answer,) = ask(http, ("POST", "/predict", {"json": {"rows": [GOOD, GOOD]}}))
    endpoint.shadows.shutdown(wait=True)
    endpoint.log.flush()
    rows = lake.scan(endpoint.log.table).collect()
    assert answer.json()["model_version"] == "4"
    found = sorted(zip(rows["stage"], rows["model_version"], strict=True))
    assert found == [("production", "4")] * 2 + [("shadow", "5")] * 2


def test_an_abandoned_folder_is_nothing_to_take_over(settings):
    assert (
        recover("never", settings=settings) == 0
        and take_over(settings.state / "nowhere", "t", {}) == 0
    )


# ---- power cuts, failed writes


class Disk:
    "What is on the disk: the state in which each file was when it was last synced."

    def __init__(self, monkeypatch):
        self.synced, self.unlinked, real_sync, real_unlink = {}, [], os.fsync, os.unlink

        def fsync(fd):
            real_sync(fd)
            self.synced[os.readlink(f"/proc/self/fd/{fd}")] = self.state(fd)

        def unlink(path, *args, **kwargs):
            if str(path).endswith(".wal"):
                self.unlinked.append((str(path), self.missing()))
            real_unlink(path, *args, **kwargs)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "unlink", unlink)
        self.table = None

    @staticmethod
    def state(file) -> tuple:
        facts = os.stat(file)
        return facts.st_ino, facts.st_size, facts.st_mtime_ns

    def missing(self) -> list[str]:
        "What of the table's newest version a power cut would take now."
        root = Path(self.table)
        commits = sorted((root / "_delta_log").glob("*.json"))
        actions = [
            json.loads(line) for commit in commits for line in commit.read_text().splitlines()
        ]
        gone = {a["remove"]["path"] for a in actions if "remove" in a}
        data = [
            root / a["add"]["path"] for a in actions if "add" in a and a["add"]["path"] not in gone
        ]
        assert data and commits
        needed = [*commits, *data, root, root / "_delta_log", root.parent, root.parent.parent]
        return [str(p) for p in needed if self.synced.get(str(p)) != self.state(p)]


def test_a_log_is_deleted_only_when_the_table_is_on_the_disk(tmp_path, monkeypatch):
    settings = create(tmp_path / "workspace", serve={"fdatasync": "true"})
    disk = Disk(monkeypatch)
    log = PredictionLog(settings, "churn", "_feedback", rotate=10)
    disk.table = log.table
    assert (
        str(log.folder) in disk.synced and str(log.folder.parent) in disk.synced
    )  # the log's own name is kept too
    for i in range(3):
        log.append(label(1, first=i))
        log.flush()
    log.append(label(1, first=3))
    log.close()
    assert len(disk.unlinked) == 4 and kept(log) == ["0", "1", "2", "3"]
    assert [missing for _, missing in disk.unlinked] == [[], [], [], []]


def test_a_table_that_cannot_be_synced_keeps_the_log(settings, monkeypatch):
    log = PredictionLog(settings, "churn", "_feedback")
    log.append(label(2))

    def refuse(table):
        raise OSError("input/output error")

    monkeypatch.setattr(data_files, "sync_table", refuse)
    with pytest.raises(OSError, match="input/output"):
        log.close()
    assert [p.suffix for p in log.folder.iterdir()] == [".wal"]
    monkeypatch.undo()
    assert (
        recover("churn", settings=settings) == 0
        and kept(log) == ["0", "1"]
        and not list(log.folder.iterdir())
    )


def test_a_frame_whose_sync_failed_is_neither_moved_nor_kept(settings, monkeypatch):
    log = PredictionLog(settings, "churn", "_feedback")
    log.sync = True
    log.append(label(1))
    moved = []

    def fail(fd):
        moved.append(log.flush())  # the mover, between the write and its failure
        raise OSError("input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="input/output"):
        log.append(label(1, first=1))
    monkeypatch.undo()
    assert moved == [1] and kept(log) == ["0"]
    log.append(label(1, first=2))
    assert log.flush() == 1 and kept(log) == ["0", "2"]
    log.close()
    assert kept(log) == ["0", "2"] and not list(log.folder.iterdir())


def test_an_undo_that_fails_is_tried_again_before_anything_is_appended(settings, monkeypatch):
    log = PredictionLog(settings, "churn", "_feedback")
    log.sync = True
    log.append(label(1))

    def fail(*args):
        raise OSError("input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(os, "ftruncate", fail)
    for i in (1, 2):
        with pytest.raises(OSError):
            log.append(label(1, first=i))
    assert log.flush() == 1 and kept(log) == ["0"]
    monkeypatch.undo()
    log.append(label(1, first=3))
    log.close()
    assert kept(log) == ["0", "3"]


def test_a_log_that_cannot_be_moved_stops_no_other(settings):
    logs = [PredictionLog(settings, "churn", "_feedback") for _ in range(2)]
    first, second = sorted(logs, key=lambda log: log.segment.path)
    append_frame(first.segment, b'{"not": "columns"}')
    second.append(label(1))
    for log in logs:
        os.close(log.segment.fd)
    with pytest.raises(KeyError):
        recover("churn", settings=settings)
    assert kept(first) == ["0"] and [p.name for p in first.folder.iterdir()] == [
        first.segment.path.name
    ]


# ---- panics and errors of a model


def test_a_panic_is_a_500_and_spares_the_batch(settings):
    endpoint, http = client(settings)
    model = endpoint.versions.traffic.choose()
    model.predict = lambda frame: (
        panic() if (frame["charges"] > 1e6).any() else constant(model.task, frame.height)
    )
    requests = [PredictRequest(model, [GOOD | {"charges": c}], 0.0) for c in (1.0, 1e9, 2.0)]
    answers = asyncio.run(endpoint.predictor.answer(requests))
    assert [type(a).__name__ for a in answers] == ["bytes", "PanicError", "bytes"]
    broken, good = ask(
        http,
        ("POST", "/predict", {"json": {"rows": [GOOD | {"charges": 1e9}]}}),
        ("POST", "/predict", {"json": {"rows": [GOOD]}}),
    )
    assert (broken.status_code, good.status_code) == (500, 200) and broken.json()["error"]["id"]


def test_a_panic_of_the_mover_is_logged_and_its_rows_are_moved_later(settings, monkeypatch):
    log = PredictionLog(settings, "churn", "_feedback").start()
    monkeypatch.setattr(lake, "append", panic)
    log.append(label(1))
    wait(lambda: log.trouble)
    assert "index out of bounds" in log.trouble and log.mover.is_alive()
    monkeypatch.undo()
    wait(lambda: kept(log))
    wait(lambda: log.trouble is None)
    log.close()
    assert kept(log) == ["0"]


def test_a_panic_while_a_version_is_loaded_is_a_problem_not_the_end(settings, monkeypatch):
    from mlops_nb.service.serving import versions

    served = versions.Versions.__new__(versions.Versions)
    served.settings, served.model, served.fixed, served.library = settings, "churn", None, "l"
    served.changing, served.loaded, served.traffic, served.problem = (
        threading.Lock(),
        {},
        None,
        None,
    )
    monkeypatch.setattr(versions.Desired, "newest", panic)
    served.reconcile()
    assert "index out of bounds" in served.problem


def test_a_panic_in_a_request_is_a_refusal(settings, monkeypatch):
    monkeypatch.setattr(pl, "from_dicts", panic)
    with pytest.raises(InputError, match="rows that polars cannot read"):
        SIGNATURE.frame([GOOD])


def test_a_models_own_os_error_is_not_the_logs(settings):
    endpoint, http = client(settings)

    def lost(frame):
        raise FileNotFoundError("embeddings.bin")

    endpoint.versions.traffic.choose().predict = lost
    (answer,) = ask(http, ("POST", "/predict", {"json": {"rows": [GOOD]}}))
    assert answer.status_code == 500 and "logged" not in answer.text


# ---- limits

CELLS = (
    st.none()
    | st.booleans()
    | st.text(max_size=3)
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.just([1])
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["tenure", "charges", "contract", "other"]), CELLS)
        | st.fixed_dictionaries(
            {
                "tenure": st.integers(-(2**63), 2**63) | st.none(),
                "charges": st.floats(),
                "contract": st.text(max_size=3),
            }
        ),
        min_size=1,
        max_size=3,
    )
)
def test_rows_that_plainly_fit_make_a_frame(rows):
    if plainly_fits(SIGNATURE, rows):
        assert SIGNATURE.frame(rows).height == len(rows)
    plain = [r for r in rows if set(r) >= {"charges", "contract"}]
    assert plainly_fits(SIGNATURE, [GOOD]) and (plain or not plainly_fits(SIGNATURE, rows))


@pytest.mark.parametrize("charges", [2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_an_integer_that_no_float_holds_does_not_plainly_fit(charges):
    rows = [GOOD | {"charges": charges}]
    with pytest.raises(InputError, match="an integer that no float holds"):
        SIGNATURE.frame(rows)
    assert not plainly_fits(SIGNATURE, rows)


def test_a_bad_request_never_reaches_the_batch(settings):
    endpoint, http = client(settings)
    batches = []

    async def batch(request):
        batches.append(request)
        return (await endpoint.predictor.answer([request]))[0]

    endpoint.answer = batch
    bad, good = ask(
        http,
        ("POST", "/predict", {"json": {"rows": [GOOD | {"charges": "much"}]}}),
        ("POST", "/predict", {"json": {"rows": [GOOD]}}),
    )
    assert (bad.status_code, good.status_code, len(batches)) == (422, 200, 1)


def test_a_frame_has_a_bounded_number_of_rows(settings):
    endpoint, _ = client(settings)
    sizes, model = [], endpoint.versions.traffic.choose()

    def predict(frame):
        sizes.append(frame.height)
        return constant(model.task, frame.height)

    model.predict = predict
    requests = [PredictRequest(model, [GOOD] * n, 0.0) for n in (3000, 1000, 96, 1, 9000)]
    answers = asyncio.run(endpoint.predictor.answer(requests))
    assert sizes == [4096, 1, 9000]
    assert [len(orjson.loads(a)["predictions"]) for a in answers] == [3000, 1000, 96, 1, 9000]


def test_rows_that_wait_are_bounded(settings):
    endpoint, http = client(settings)
    endpoint.queue.rows, request = (
        endpoint.queue.most,
        ("POST", "/predict", {"json": {"rows": [GOOD]}}),
    )
    (full,) = ask(http, request)
    assert full.status_code == 503 and full.headers["retry-after"] == "1"
    endpoint.queue.rows = 0
    _, http = client(settings)
    assert ask(http, request)[0].status_code == 200 and endpoint.queue.rows == 0


MANY = {
    "empty rows": b'{"rows":[' + b"{}," * 3_000_000 + b"{}]}",
    "numbers": b'{"rows":[' + b"1," * 3_000_000 + b"1]}",
    "lists": b'{"rows":[' + b"[]," * 3_000_000 + b"[]]}",
    "keys": b'{"rows":[{' + b'"":1,' * 3_000_000 + b'"":1}]}',
    "quotes": b'{"rows":[' + b"{}," * 2_000_000 + b'"' + b'\\"' * 4_000_000,
}


@pytest.mark.parametrize("body", MANY)
def test_far_too_many_values_are_refused_before_they_are_objects(settings, monkeypatch, body):
    monkeypatch.setattr(orjson, "loads", lambda text: pytest.fail("it was parsed"))
    labels = partial(protocols.read_labels, spelled=str, expected="a label")
    for read in (protocols.read_rows, labels):
        with pytest.raises(Refused) as refused:
            read(MANY[body], "application/json", limit=5)
        assert refused.value.status == 413


def test_brackets_in_texts_are_no_rows(settings):
    text = '{[,\\"' * 3_000
    rows = protocols.read_rows(
        orjson.dumps({"rows": [{"text": text}]}), "application/json", limit=5
    )
    assert rows == [{"text": text}]


@pytest.mark.parametrize(
    "rows",
    [
        [{"x" * 1_000_000: 1}],
        [GOOD | {"tenur" + "e" * 1_000_000: 1}],
        [GOOD | {"contract": 1, "charges": "y" * 1_000_000}],
        [GOOD | {"charges": ["z" * 1_000_000]}],
        [["q" * 1_000_000]],
    ],
)
def test_what_is_echoed_is_cut_and_a_long_name_is_never_compared(settings, rows):
    _, http = client(settings)
    began = time.process_time()
    (answer,) = ask(http, ("POST", "/predict", {"json": {"rows": rows}}))
    assert (
        answer.status_code == 422 and len(answer.content) < 2000 and time.process_time() - began < 5
    )


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"x" * 1_000_000: []}},
        {"json": {str(i): i for i in range(100_000)}},
        {"content": b"{}", "headers": {"content-type": "x" * 50_000}},
    ],
)
def test_keys_and_headers_are_echoed_cut(settings, request_):
    _, http = client(settings)
    answer, lost = ask(http, ("POST", "/predict", request_), ("GET", "/" + "x" * 50_000, {}))
    assert answer.status_code in (400, 415) and len(answer.content) < 2000
    assert lost.status_code == 404 and len(lost.content) < 2000


@pytest.mark.parametrize("depth", [5, 900])
def test_a_deeply_nested_value_is_refused_in_words(settings, depth):
    _, http = client(settings)
    nested = (
        b'{"rows":[{"tenure":1,"charges":' + b"[" * depth + b"]" * depth + b',"contract":"a"}]}'
    )
    (answer,) = ask(http, ("POST", "/predict", {"content": nested, "headers": JSON}))
    assert answer.status_code == 422 and answer.json()["error"]["got"] in (
        "an array of 1",
        "an array of 0",
    )


@pytest.mark.parametrize(
    "labels",
    [
        {"prediction_id": "x" * 1_000_000, "label": "a"},
        {"prediction_id": "a", "label": "x" * 1_000_000},
        {"prediction_id": "a", "x" * 1_000_000: 1},
    ],
)
def test_long_texts_in_feedback_are_refused(settings, labels):
    endpoint, http = client(settings)
    (answer,) = ask(http, ("POST", "/feedback", {"json": {"labels": [labels]}}))
    assert answer.status_code == 422 and len(answer.content) < 2000 and endpoint.labels.flush() == 0


# ---- browsers

HOSTS = {
    "localhost": 200,
    "localhost:8000": 200,
    "127.0.0.1:9": 200,
    "[::1]:8000": 200,
    "LOCALHOST.": 200,
    "models.example": 200,
    "models.example:8000": 200,
    "evil.example": 421,
    "evil.example:8000": 421,
    "127.0.0.1.evil.example": 421,
    "localhost.evil.example": 421,
    "10.0.0.7": 421,
    "": 421,
}


@pytest.mark.parametrize("host", HOSTS)
def test_only_our_names_are_answered(tmp_path, host):
    settings = create(tmp_path / "named", serve={"hosts": "models.example other.example"})
    _, http = client(settings)
    answers = ask(
        http,
        ("POST", "/predict", {"json": {"rows": [GOOD]}, "headers": {"host": host}}),
        ("GET", "/healthz", {"headers": {"host": host}}),
    )
    assert [a.status_code for a in answers] == [HOSTS[host]] * 2
    assert HOSTS[host] == 200 or "[serve] hosts" in answers[0].json()["error"]["message"]


def test_on_every_interface_addresses_and_the_machines_name_count_and_star_is_any():
    import socket

    from mlops_nb.service.serving.guard import check_host, host_names

    open_house, anybody = ServeSection(host="0.0.0.0", tokens="t"), ServeSection(hosts="*")
    for host in ("10.0.0.7:8000", "[fe80::1]:8000", socket.gethostname()):
        check_host([(b"host", host.encode())], host_names(open_house))
    with pytest.raises(Refused):
        check_host([(b"host", b"evil.example")], host_names(open_house))
    with pytest.raises(Refused):
        check_host(
            [(b"host", b"localhost"), (b"host", b"evil.example")], host_names(ServeSection())
        )
    check_host([(b"host", b"evil.example")], host_names(anybody))


def test_every_answer_tells_browsers_what_they_may_do(settings):
    _, http = client(settings)
    for answer in ask(
        http,
        ("GET", "/docs", {}),
        ("GET", "/healthz", {}),
        ("GET", "/nowhere", {}),
        ("GET", "/healthz", {"headers": {"host": "evil.example"}}),
    ):
        policy = answer.headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy
            and "frame-ancestors 'none'" in policy
            and "script-src 'sha256-" in policy
        )
        assert (
            answer.headers["x-content-type-options"] == "nosniff"
            and answer.headers["referrer-policy"] == "no-referrer"
        )


def test_a_websocket_upgrade_is_a_4xx(settings, listening):
    endpoint, _ = client(settings)
    upgrade = (
        "GET /predict HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with (
        listening(application_of(endpoint)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as line,
    ):
        line.sendall(upgrade.encode())
        answer = line.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400"), answer


def test_the_documentation_works_in_a_browser_under_its_policy(settings, chromium, listening):
    from playwright.sync_api import sync_playwright

    endpoint, _ = client(settings)
    with listening(application_of(endpoint)) as port, sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page, problems = browser.new_page(), []
        page.on(
            "console",
            lambda m: (
                problems.append(m.text) if m.type == "error" and "favicon" not in m.text else None
            ),
        )
        page.goto(f"http://localhost:{port}/docs")
        assert (
            page.evaluate("getComputedStyle(document.body).maxWidth") == "960px"
        )  # its style is let through
        page.get_by_role("button", name="POST predict").click()
        page.locator("#answer", has_text="prediction_id").wait_for()
        assert page.locator("#answer").text_content().startswith("200")
        page.evaluate(
            "document.body.insertAdjacentHTML("
            "'beforeend', '<img src=x onerror=\"window.broken = 1\">')"
        )
        page.wait_for_timeout(300)
        assert (
            page.evaluate("window.broken") is None
        )  # a script that came in by markup does not run
        browser.close()
    assert all(
        "Content Security Policy" in text or "Failed to load" in text for text in problems
    ), problems
