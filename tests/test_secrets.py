"Secrets leave the settings only masked; a panic of a library is an ordinary error everywhere."

import copy
import json
import pickle
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import nbformat
import polars as pl
import pytest
from conftest import panic
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from papermill.exceptions import PapermillExecutionError

from mlops_nb.core import events, tracking
from mlops_nb.core.errors import (
    DataError,
    PanicError,
    SealedError,
    SettingsError,
    TrackingError,
    TriggerError,
    panics_as_errors,
)
from mlops_nb.core.masking import SecretUri, Tokens, Webhook, masked, masked_all, scrubbed
from mlops_nb.core.settings import create, load_settings
from mlops_nb.data.contracts import rule_expression
from mlops_nb.data.sources import Source
from mlops_nb.data.sources.partition import Part
from mlops_nb.flow import triggers
from mlops_nb.flow.triggers import reasons
from mlops_nb.flow.workflow import _recorded
from mlops_nb.flow.workflow.endings import failure_reason
from mlops_nb.flow.workflow.ledger import Ledger
from mlops_nb.flow.workflow.runs import Run
from mlops_nb.flow.workflow.stages import Stage
from mlops_nb.front import pages
from mlops_nb.service.monitoring import alerts
from mlops_nb.service.monitoring.alerts import Alert

SECRETS = ("s3cret", "t0ken", "hunter2", "T0B0", "0pen", "sesame", "pass2")


@pytest.fixture
def secretive(tmp_path):
    "A workspace in whose settings every secret is set."
    return create(
        tmp_path / "w",
        serve={"tokens": "alice:s3cret t0ken"},
        alerts={"webhook": "https://hooks.example/T0B0/x"},
        tracking={
            "uri": "postgresql://me:hunter2@127.0.0.1:9/mlflow",
            "artifacts": "ftp://me:hunter2@host/a",
        },
        **{
            "trigger:shop": {
                "database": "postgresql://me:hunter2@127.0.0.1:9/shop",
                "query": "sales",
                "watermark": "at",
                "parameters": '{"source": "pg://u:pass2@h/d"}',
            }
        },
    )


def shown(text) -> list[str]:
    return [secret for secret in SECRETS if secret in str(text)]


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        lambda s: s.model_dump_json(),
        lambda s: repr(s.model_dump()),
        lambda s: json.dumps(s.model_dump(mode="json")),
        lambda s: repr(s.serve),
        lambda s: f"{s.tracking.uri} {s.alerts.webhook} {s.serve.tokens}",
        lambda s: s.model_dump_json(exclude={"root"}),
    ],
)
def test_no_form_of_the_settings_shows_a_secret(secretive, show):
    assert not shown(show(secretive))


def test_values_are_there_where_they_are_used(secretive):
    assert secretive.tracking_uri == "postgresql://me:hunter2@127.0.0.1:9/mlflow"
    assert secretive.artifacts_uri == "ftp://me:hunter2@host/a"
    assert secretive.alerts.webhook.get_secret_value() == "https://hooks.example/T0B0/x"
    assert secretive.serve.tokens.first == "s3cret"
    assert copy.deepcopy(secretive) == secretive == load_settings(secretive.root)
    assert str(secretive.tracking.uri) == "postgresql://me:***@127.0.0.1:9/mlflow"
    assert str(secretive.alerts.webhook) == "https://hooks.example/***"


def test_pickled_settings_hold_no_secret_and_open_again_by_the_file(secretive):
    data = pickle.dumps(secretive)
    bare = (
        pickle.dumps(secretive.serve)
        + pickle.dumps(secretive.tracking)
        + pickle.dumps(secretive.alerts)
    )
    assert not [
        s for s in ("s3cret", "t0ken", "hunter2", "T0B0", "pass2") if s.encode() in data + bare
    ]
    again = pickle.loads(data)
    assert again.trigger["shop"].parameters == {"source": "pg://u:pass2@h/d"}
    assert copy.deepcopy(again) == again == secretive
    assert again.tracking_uri == secretive.tracking_uri and again.serve.tokens.first == "s3cret"
    assert again.trigger["shop"].database.get_secret_value().endswith("hunter2@127.0.0.1:9/shop")


def test_what_serve_keeps_of_an_application_has_no_secret(secretive):
    from ray import cloudpickle

    from mlops_nb.service.serving import application

    kept = application("churn", library="l", settings=secretive)._bound_deployment
    data = cloudpickle.dumps(
        (kept.init_args, kept.init_kwargs, kept._deployment_config, kept._replica_config)
    )
    assert b"churn" in data and not [
        s for s in ("s3cret", "t0ken", "hunter2", "T0B0") if s.encode() in data
    ]


def test_without_the_file_tokens_are_still_checked_and_nothing_else_is_known(secretive):
    data = pickle.dumps(secretive)
    (secretive.root / "settings.ini").rename(secretive.root / "moved.ini")
    again = pickle.loads(pickle.dumps(pickle.loads(data)))  # also twice
    assert again.serve.identify("s3cret") == "alice" and again.serve.identify("guess") is None
    assert again.serve.tokens and not shown(repr(again.serve))
    for use in (
        lambda: again.tracking_uri,
        lambda: again.serve.tokens.first,
        again.alerts.webhook.get_secret_value,
    ):
        with pytest.raises(SealedError, match="without its secret"):
            use()


def test_a_file_that_says_something_else_opens_nothing(secretive):
    data = pickle.dumps(
        secretive.model_copy(
            update={
                "serve": secretive.serve.model_copy(update={"tokens": Tokens("bob:0ther")}),
                "alerts": secretive.alerts.model_copy(
                    update={"webhook": Webhook("https://elsewhere.example/x")}
                ),
            }
        )
    )
    again = pickle.loads(data)
    assert again.serve.identify("0ther") == "bob" and again.serve.identify("s3cret") is None
    with pytest.raises(SealedError):
        again.alerts.webhook.get_secret_value()
    assert again.tracking_uri == secretive.tracking_uri


def test_settings_without_secrets_are_pickled_as_they_are(tmp_path):
    plain = create(tmp_path, tracking={"uri": "postgresql://me:$PGPASSWORD@host/mlflow"})
    (tmp_path / "settings.ini").unlink()
    again = pickle.loads(pickle.dumps(plain))
    assert (
        again.tracking_uri == plain.tracking_uri
        and not again.serve.tokens
        and again.serve.tokens.first is None
    )


@pytest.mark.parametrize(
    "tokens, token, name",
    [
        ("alice:SECRET", "SECRET", "alice"),
        ("alice:SECRET", "alice:SECRET", None),
        ("alice:SECRET", "alice", None),
        ("alice:A bob:B", "B", "bob"),
        ("bare", "bare", "token-9b828d"),
        ("bare", "", None),
        ("", "", None),
        ("", "x", None),
        ("ci@example.com:A", "A", "ci@example.com"),
        ("a", "ä", None),
        ("a", "\udc80", None),
    ],
)
def test_a_token_says_whose_it_is(tmp_path, tokens, token, name):
    assert create(tmp_path, serve={"tokens": tokens}).serve.identify(token) == name


@pytest.mark.parametrize("tokens", [":A", "alice:", "al/ice:A", "alice:A bob:A"])
def test_tokens_that_cannot_be_are_refused_unshown(tmp_path, tokens):
    with pytest.raises(SettingsError, match=r"\[serve\] tokens") as error:
        create(tmp_path / "w", serve={"tokens": tokens})
    assert ":A" not in str(error.value) and "alice:" not in str(error.value)


def test_what_is_refused_in_the_settings_is_not_shown_where_it_is_secret(tmp_path):
    with pytest.raises(SettingsError) as error:
        create(tmp_path, serve={"tokens": ["s3cret"], "port": 0})
    assert (
        not shown(error.value) and not shown(error.value.__cause__) and "port" in str(error.value)
    )


def test_secrets_from_the_environment_are_used_and_masked(tmp_path, monkeypatch):
    monkeypatch.setenv("MLOPS_NB__SERVE__TOKENS", "alice:s3cret")
    monkeypatch.setenv("MLOPS_NB__TRACKING__URI", "postgresql://me:hunter2@h/d")
    settings = create(tmp_path)
    assert settings.serve.identify("s3cret") == "alice" and settings.tracking_uri.endswith(
        "hunter2@h/d"
    )
    assert not shown(repr(settings))


@pytest.mark.parametrize(
    "text, safe",
    [
        ("postgresql://me:0pen sesame@1@h/d", "postgresql://me:***@h/d"),
        ("postgresql://me:a/b?c#d@h/d", "postgresql://me:***@h/d"),
        (
            "postgresql://h/d?user=me&password=0pen&sslpassword=sesame",
            "postgresql://h/d?user=me&password=***&sslpassword=***",
        ),
        (
            "s3://b/k?access_token=0pen&api_key=sesame&page=2",
            "s3://b/k?access_token=***&api_key=***&page=2",
        ),
        ("postgresql://me:${PG}@h/d", "postgresql://me:${PG}@h/d"),
        ("postgresql://me@h/d", "postgresql://me@h/d"),
        ("http://127.0.0.1:8000/models/churn", "http://127.0.0.1:8000/models/churn"),
        (
            "see http://127.0.0.1:8000 and churn@champion",
            "see http://127.0.0.1:8000 and churn@champion",
        ),
        (
            "no route to mysql://me:0pen@h/d or pg://me:sesame@h/e",
            "no route to mysql://me:***@h/d or pg://me:***@h/e",
        ),
        ("data/customers.csv", "data/customers.csv"),
    ],
)
def test_passwords_in_texts_are_masked(text, safe):
    assert masked(text) == safe == masked(safe)


@given(st.text(min_size=1).filter(lambda p: p[0] != "$"))
def test_no_password_survives_in_an_address(password):
    assert (
        masked(f"postgresql://me:{password}@host/db") == "postgresql://me:***@host/db"
        or "@" in password
    )


def test_scrubbing_finds_a_password_in_other_words():
    assert scrubbed(
        "FATAL: '0pen sesame' of postgresql://me:0pen%20sesame@h",
        "postgresql://me:0pen%20sesame@h/d",
    ) == ("FATAL: '***' of postgresql://me:***@h")


# ---- where they used to leave


def test_the_triggers_over_http_and_in_the_log(secretive, monkeypatch):
    client, key = (
        TestClient(pages.control_app(secretive), base_url="http://localhost"),
        {"authorization": "Bearer s3cret"},
    )
    answer = client.get("/api/triggers", headers=key)
    assert answer.status_code == 200 and not shown(answer.text)
    assert answer.json()["triggers"][0]["waits_for"] == "postgresql://me:***@127.0.0.1:9/shop"
    due = [
        reasons.Due(
            "shop", "new rows", {}, None, events.EPOCH, dict(secretive.trigger["shop"].parameters)
        )
    ]
    runs = []
    triggers.fire(
        lambda parameters: runs.append(parameters) or SimpleNamespace(id="r"),
        due,
        settings=secretive,
    )
    assert runs == [{"source": "pg://u:pass2@h/d"}]  # the run itself gets it

    def fail(parameters):
        raise RuntimeError("pg://u:pass2@h/d is down")

    with pytest.raises(RuntimeError):
        triggers.fire(fail, due, settings=secretive)
    assert not shown(events.history(secretive.events).collect()["details"].to_list())


def test_a_request_with_a_password_is_refused(secretive):
    with pytest.raises(TriggerError, match=r"parameter source.*\$PASSWORD"):
        reasons.request_run({"source": "postgresql://u:pass2@h/d"}, by="ann", settings=secretive)
    assert reasons.request_run({"source": "postgresql://u:$PW@h/d"}, by="ann", settings=secretive)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("https://hooks.example/T0B0/x: refused"),
        httpx.InvalidURL("Invalid path 'T0B0/x'"),
        httpx.HTTPStatusError(
            "for url 'https://hooks.example/T0B0/x'", request=None, response=httpx.Response(404)
        ),
    ],
)
def test_the_webhooks_address_is_not_in_the_audit_log(secretive, monkeypatch, error):
    def post(*args, **kwargs):
        raise error

    monkeypatch.setattr(httpx, "post", post)
    alert = Alert("a", "m", "drift", "x", "", "1", None, datetime.now(UTC))
    monkeypatch.setattr(alerts, "open_alerts", lambda model, settings: [alert])
    assert not shown(alerts.notify("m", settings=secretive))
    assert events.newest(secretive.events, "notified", "m")["details"]["error"]
    assert not shown(events.history(secretive.events).collect()["details"].to_list())


def test_a_tracking_database_that_is_away_is_named_without_its_password(secretive, monkeypatch):
    def away(*args, **kwargs):
        raise RuntimeError("no route to postgresql://me:hunter2@127.0.0.1:9/mlflow")

    monkeypatch.setattr(
        tracking,
        "_mlflow",
        lambda: SimpleNamespace(
            set_tracking_uri=lambda uri: None, set_registry_uri=lambda uri: None, MlflowClient=away
        ),
    )
    with pytest.raises(TrackingError, match=r"me:\*\*\*@") as error:
        tracking.mlflow_client(secretive)
    assert not shown(error.value)


def test_a_server_of_mlflow_is_not_printed_with_its_password(monkeypatch, capsys):
    "MLflow prints where a run is when it ends, with the whole address of the server."
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    info, data = SimpleNamespace(experiment_id="1", run_name="a"), SimpleNamespace(tags={})
    monkeypatch.setattr(RestStore, "get_run", lambda *_: SimpleNamespace(info=info, data=data))
    client = TrackingServiceClient("http://me:hunter2@127.0.0.1:9")
    client._log_url("r")
    assert shown(capsys.readouterr().out) == ["hunter2"], "as MLflow does it"
    tracking._mlflow()
    client._log_url("r")
    assert capsys.readouterr().out == ""


def test_files_that_are_away_are_named_without_the_password_of_their_store(secretive, monkeypatch):
    monkeypatch.setattr(tracking, "mlflow_client", lambda settings: None)
    with pytest.raises(TrackingError, match=r"nothing at ftp://me:\*\*\*@127.0.0.1:9/a/b") as error:
        tracking.fetch("ftp://me:hunter2@127.0.0.1:9/a/b", settings=secretive)
    assert not shown(error.value)
    with pytest.raises(SettingsError, match="libraries misread '#' in it") as error:
        create(secretive.root / "x", tracking={"artifacts": "ftp://me:hunter2@host/a#1"})
    assert not shown(error.value)


def test_parameters_in_mlflow_are_masked(tmp_path):
    ledger = Ledger(create(tmp_path))
    run = ledger.open("run", parameters={"source": "postgresql://u:pass2@h/d", "n": 1})
    assert ledger.client.get_run(run).data.params == {"source": "postgresql://u:***@h/d", "n": "1"}


def test_the_reason_of_a_failure_and_the_note_of_a_request_are_masked(tmp_path):
    path, error = tmp_path / "1_a.ipynb", RuntimeError("postgresql://u:pass2@h/d is away")
    nbformat.write(
        new_notebook(cells=[new_code_cell("x = 1", metadata={"tags": ["parameters"]})]), path
    )
    assert not shown(failure_reason(Stage.read(path), {}, error))
    in_cell = PapermillExecutionError(0, 1, "x", "RuntimeError", str(error), [])
    assert not shown(failure_reason(Stage.read(path), {}, in_cell))
    settings = create(tmp_path / "w")
    reasons.request_run(by="ann", note=str(error), settings=settings)
    details = events.newest(settings.events, "run_requested", "trigger:manual")["details"]
    assert details["note"] == "postgresql://u:***@h/d is away"


def test_the_start_of_a_run_is_recorded_without_passwords(tmp_path):
    settings = create(tmp_path)
    run = Run("r", [])
    ledger = SimpleNamespace(close=lambda *args, **facts: None)
    given = {"source": "postgresql://u:pass2@h/d", "n": 1}
    with _recorded(SimpleNamespace(run=run, settings=settings, ledger=ledger), "ann", given):
        pass
    details = events.newest(settings.events, "run_started", "run:r")["details"]
    assert details["parameters"] == {"source": "postgresql://u:***@h/d", "n": 1}


def test_sources_show_no_password():
    source = Source("postgresql://u:pass2@h/d?sslpassword=sesame#table=t")
    assert not shown(f"{source} {source!r}") and masked_all([source.uri]) == [
        "postgresql://u:***@h/d?sslpassword=***#table=t"
    ]


def test_secrets_are_equal_by_type_and_value():
    assert (
        SecretUri("x") == SecretUri("x") != Webhook("x")
        and not SecretUri("")
        and hash(SecretUri("x")) == hash(SecretUri("x"))
    )


# ---- the control application


@pytest.fixture
def control(tmp_path):
    return TestClient(pages.control_app(create(tmp_path)), base_url="http://localhost")


def test_pages_answer_only_for_our_names(control):
    assert control.get("/", headers={"host": "evil.example"}).status_code == 421
    assert (
        control.post(
            "/api/runs", json={"by": "x"}, headers={"host": "evil.example:8000"}
        ).status_code
        == 421
    )
    assert control.get("/").status_code == 200
    policy = control.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert control.get("/nowhere").headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_simple_post_of_another_site_starts_nothing(control, kind):
    headers = {"content-type": kind} if kind else {}
    answer = control.post("/api/runs", content=b'{"parameters": {}, "by": "evil"}', headers=headers)
    assert answer.status_code == 422


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_the_api_are_bounded(control, chunked):
    body = b'{"by": "' + b"x" * (1 << 20) + b'"}'
    content = (body[i : i + 65536] for i in range(0, len(body), 65536)) if chunked else body
    answer = control.post(
        "/api/runs", content=content, headers={"content-type": "application/json"}
    )
    assert (
        answer.status_code == 413
        and "larger than 1048576 bytes" in answer.json()["error"]["message"]
    )


def test_a_body_nested_too_deeply_is_refused(control):
    body = b'{"by": "x", "parameters": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    assert control.post(
        "/api/runs", content=body, headers={"content-type": "application/json"}
    ).status_code in (400, 422)


def test_a_panic_behind_a_page_is_a_500(control, monkeypatch):
    monkeypatch.setattr(pages, "state", panic)
    assert control.get("/api/status").status_code == 500
    assert control.get("/healthz").status_code == 200


# ---- panics


class Panicking(Part):
    def _batches(self, dtypes, text, rows):
        panic()
        yield


def test_a_panic_is_an_error_of_data(monkeypatch, tmp_path):
    from datetime import UTC, datetime

    with pytest.raises(DataError, match="out of bounds"):
        list(Panicking("a.csv", {}, datetime.now(UTC), None).batches())
    monkeypatch.setattr(Source, "_parts", panic)
    with pytest.raises(DataError, match="out of bounds"):
        Source("a.csv", tmp_path).parts()
    monkeypatch.setattr(pl, "sql_expr", panic)
    with pytest.raises(DataError, match="out of bounds"):
        rule_expression("a > 1")


def test_a_panic_does_not_end_a_watch(tmp_path, monkeypatch):
    settings = create(tmp_path, **{"trigger:t": {"files": "*.csv", "settle": 0}})
    (tmp_path / "a.csv").write_text("id\n1\n")
    heard = []
    assert triggers.watch_once(
        panic, lambda what, why: heard.append((what, why)), settings=settings
    )
    assert heard[-1][0] == "failed" and "out of bounds" in heard[-1][1]
    monkeypatch.setattr(reasons, "_due", panic)
    reasons.pending(settings, on_error=lambda name, e: heard.append((name, str(e))))
    assert heard[-1][0] == "t" and "out of bounds" in heard[-1][1]


def test_errors_that_are_no_panics_stay_as_they_are():
    with pytest.raises(PanicError), panics_as_errors():
        panic()
    for error in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(error), panics_as_errors():
            raise error
