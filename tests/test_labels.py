"Labels have one spelling from the target to the monitor: booleans, numbers, strings, dates."

import asyncio
import json
from datetime import date, datetime
from decimal import Decimal

import httpx
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from mlops_nb.core import lake, tracking
from mlops_nb.core.settings import create
from mlops_nb.data.profiles.profiling import profile
from mlops_nb.models import registry
from mlops_nb.models.bundle import Bundle
from mlops_nb.models.packing import fill
from mlops_nb.models.sealing import seal
from mlops_nb.science.candidates import Candidate
from mlops_nb.science.labels import matching_label, respelled, spelling, values_by_label
from mlops_nb.science.objective import Objective
from mlops_nb.science.pipeline import fit, save_candidate
from mlops_nb.science.task import Binary
from mlops_nb.service import monitoring
from mlops_nb.service.deployment import applications
from mlops_nb.service.serving import Handlers, application_of
from mlops_nb.service.serving.log import PredictionLog
from mlops_nb.service.serving.versions import Versions


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Yes", "Yes"),
        ("True", "True"),
        ("1.0", "1.0"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (1.0, "1"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e16, "10000000000000000"),
        (1e-7, "0.0000001"),
        (Decimal("1.500"), "1.5"),
        (Decimal("2.00"), "2"),
        (Decimal("100"), "100"),
        (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 12), "2026-01-31T12:00:00"),
        (datetime.fromisoformat("2026-01-31T14:00:00+02:00"), "2026-01-31T12:00:00Z"),
    ],
)
def test_a_label_has_one_spelling(value, text):
    assert spelling(value) == text


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_every_way_of_writing_a_label_means_it(value):
    labels = [spelling(value), "another"]
    assert (
        matching_label(value, labels)
        == labels[0]
        == matching_label(str(value), labels)
        == matching_label(labels[0], labels)
    )
    assert respelled(str(value)) == labels[0]


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=3))
def test_text_means_a_label_of_its_own_spelling_first(text, others):
    assert matching_label(text, [*others, text]) == text


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (1, ("false", "true")),
        (True, ("0", "1")),
        ("maybe", ("No", "Yes")),
        (None, ("No", "Yes")),
        ([1], ("0", "1")),
        (float("nan"), ("0", "1")),
        ("1.00", ("1", "1.0")),
        ("1e999999999", ("0", "1")),
        ({"a": 1}, ("0", "1")),
        ("", ("0", "1")),
    ],
)
def test_what_is_none_of_the_labels_means_none(value, labels):
    assert matching_label(value, labels) is None


def test_a_column_has_the_labels_of_its_values():
    assert values_by_label(pl.Series([0.0, -0.0, None, float("nan"), 2.5])) == {
        "0": [0.0],
        "2.5": [2.5],
    }
    assert values_by_label(pl.Series(["b", "a"], dtype=pl.Categorical)) == {"a": ["a"], "b": ["b"]}


def test_reported_labels_are_read_in_every_spelling():
    task = Binary(labels=("false", "true"))
    reported = pl.Series("l", ["True", "0", "false", None])
    assert task.parse(reported).to_list() == [1, None, 0, None]


TARGETS = {
    "boolean": (pl.Boolean, True, ("false", "true")),
    "float": (pl.Float64, 1, ("0", "1")),
    "integer": (pl.Int8, 1, ("0", "1")),
    "float as it is": (pl.Float64, 1.0, ("0", "1")),
    "decimal": (pl.Decimal(5, 2), 1, ("0", "1")),
    "text": (pl.String, "1", ("0", "1")),
    "text of a float": (pl.Float64, "1", ("0", "1")),
    "negated": (pl.Boolean, False, ("true", "false")),
}


def rows(dtype) -> pl.DataFrame:
    ones = pl.Series([int(i % 7 > 3) for i in range(300)])
    return pl.DataFrame(
        {"id": range(300), "x": [float(i % 7) + i % 3 for i in range(300)], "y": ones.cast(dtype)}
    )


def objective(positive) -> Objective:
    return Objective(name="m", question="?", target="y", positive=positive, key="id")


@pytest.mark.parametrize("name", TARGETS)
def test_a_model_spells_the_labels_of_its_target(name):
    dtype, positive, labels = TARGETS[name]
    fitted = fit(rows(dtype), objective(positive), Candidate("logistic", LogisticRegression()))
    assert fitted.labels == labels and set(fitted.predict(rows(dtype)).labels) == set(labels)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("boolean", (False, True)),
        ("boolean", ("false", "true")),
        ("float", (0, 1)),
        ("float", (0.0, 1.0)),
        ("integer", (0, 1)),
    ],
)
def test_feedback_finds_its_predictions(tmp_path, name, said):
    "Predict, report what became true in JSON, look once: every label is used."
    dtype, positive, labels = TARGETS[name]
    settings, frame = create(tmp_path / "ws", monitor={"min_rows": 100}), rows(dtype)
    (tmp_path / "report.json").write_text(
        '{"metrics": {"roc_auc": {"value": 0.9, "low": 0.85, "high": 0.95}}}'
    )
    fitted = fit(frame, objective(positive), Candidate("logistic", LogisticRegression()))
    (tmp_path / "report").mkdir()
    (tmp_path / "report.json").rename(tmp_path / "report/report.json")
    with tracking.start_run(settings, name="train"):
        report = tracking.log_folder(tmp_path / "report", "report", settings=settings)
        reference = profile(frame.select("x")).merge(
            profile(pl.DataFrame({"prediction": fitted.probability(frame)}))
        )
        version = registry.register(
            "m",
            fitted.save(settings),
            report_uri=report,
            dataset="m@1",
            profile=reference,
            objective=objective(positive),
            by="ann",
            settings=settings,
        )
    _, desired = applications.target(version.ref, settings=settings)
    logs = PredictionLog(settings, "m"), PredictionLog(settings, "m", "_feedback")
    versions = Versions(settings, "m", desired.library, fixed=desired)
    handlers = Handlers(versions, *logs)
    handlers.predictor.stage = "production"
    http = httpx.AsyncClient(
        transport=httpx.ASGITransport(application_of(handlers)), base_url="http://localhost"
    )

    async def talk():
        answer = await http.post("/predict", json={"rows": frame.select("x").to_dicts()})
        ids = [p["prediction_id"] for p in answer.json()["predictions"]]
        feedback = [
            {"prediction_id": i, "label": said[int(y)]}
            for i, y in zip(ids, frame["y"], strict=True)
        ]
        good = await http.post("/feedback", json={"labels": feedback})
        return (
            answer,
            good,
            await http.post(
                "/feedback", json={"labels": [*feedback[:3], feedback[3] | {"label": "perhaps"}]}
            ),
        )

    answer, good, bad = asyncio.run(talk())
    assert {p["prediction"] for p in answer.json()["predictions"]} == set(labels)
    assert good.json() == {"accepted": 300}
    assert bad.status_code == 422 and bad.json()["error"]["row"] == 3
    assert (
        bad.json()["error"]["message"]
        == f'row 3: "perhaps" is no label of this model, expected {labels[0]} or {labels[1]}'
    )
    for log in logs:
        log.close()
    stored = lake.scan(settings.table("_feedback", "m")).collect()["label"]
    assert set(stored) == set(labels) and len(stored) == 300
    result = monitoring.monitor("m", settings=settings)
    assert result.version_verdict.labelled == 300
    assert result.table.filter(pl.col("kind") == "performance").height == 1


@pytest.mark.parametrize(
    ("positive", "old", "new"),
    [
        (True, ["False", "True"], ("false", "true")),
        (1, ["0.0", "1"], ("0", "1")),
        ("True", ["False", "True"], ("False", "True")),
        ("1.0", ["0.0", "1.0"], ("0.0", "1.0")),
    ],
)
def test_a_bundle_of_the_old_spelling_finds_its_feedback(tmp_path, positive, old, new):
    fitted = fit(rows(pl.Int64), objective(1), Candidate("logistic", LogisticRegression()))
    candidate_folder = save_candidate(fitted, tmp_path / "made")
    file = candidate_folder / "candidate.json"
    about = json.loads(file.read_text())
    del about["task"]  # which candidates of that time did not have
    file.write_text(json.dumps(about | {"labels": old}))
    (tmp_path / "report.json").write_text("{}")
    fill(
        tmp_path / "b",
        candidate=candidate_folder,
        report=tmp_path,
        profile=b"",
        objective=objective(positive),
        lineage={},
        requirements="",
    )
    seal(tmp_path / "b")
    labels = Bundle(tmp_path / "b").labels
    assert labels == new
    reported = pl.Series([old[1], old[0], new[1]])
    assert Binary(labels=labels).parse(reported).to_list() == [1, 0, 1]
