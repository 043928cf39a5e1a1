"Deployment on a real Ray head over real HTTP: what is promised during changes and failures."

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import httpx
import numpy as np
import orjson
import polars as pl
import pytest
from conftest import aliases

from mlops_nb.core import cluster, events, lake, tracking
from mlops_nb.core.errors import ApprovalError, ClusterError, DeploymentError, EventConflict
from mlops_nb.core.preview import Preview
from mlops_nb.core.settings import create, load_settings
from mlops_nb.data.profiles.profiling import profile
from mlops_nb.flow import lineage, references
from mlops_nb.front import cli, overview, pages
from mlops_nb.models import approvals, registry, roles
from mlops_nb.science.candidates import Candidate
from mlops_nb.science.objective import Objective
from mlops_nb.science.pipeline import fit
from mlops_nb.science.task import Binary
from mlops_nb.service import deployment, monitoring
from mlops_nb.service.deployment import acceptance, applications, conditions
from mlops_nb.service.deployment.acceptance import Acceptance, AcceptanceCheck
from mlops_nb.service.serving.versions import Desired

pytestmark = pytest.mark.cluster
OBJECTIVE = Objective(
    name="churn", question="Who will leave?", target="churn", positive="Yes", key="customer_id"
)
CUSTOMERS = pl.read_parquet(
    os.path.join(os.path.dirname(__file__), "../data/telco_churn.parquet")
).head(1500)
NOBODY = Binary(labels=("No", "Yes")).from_positive(np.zeros(1500))
ROW = orjson.dumps({"rows": [CUSTOMERS.drop("churn").row(0, named=True)]})


@pytest.fixture(scope="module")
def shop(ray_cluster, tmp_path_factory):
    """A workspace of the models churn/1 to churn/6, all approved but 4.

    They are /1 and /2 (one library), /3 (another library), /4 (as 1), /5 (as 1, without the column
    tenure and with whole monthly charges), /6 (as 1). A library has a feature function.
    """
    settings = create(
        tmp_path_factory.mktemp("shop"),
        workspace={"package": "shop"},
        serve={"flush_seconds": "0.2"},
    )
    report = tmp_path_factory.mktemp("report")
    (report / "report.json").write_text('{"passed": true}')
    other = CUSTOMERS.drop("tenure").with_columns(pl.col("monthly_charges").cast(pl.Int64))
    sys.path.insert(0, str(settings.root))
    for c, code, customers in (
        (1.0, "X = 1", CUSTOMERS),
        (0.001, "X = 1", CUSTOMERS),
        (0.1, "X = 2", CUSTOMERS),
        (0.5, "X = 1", CUSTOMERS),
        (0.4, "X = 1", other),
        (0.3, "X = 1", CUSTOMERS),
    ):
        (settings.root / "shop").mkdir(exist_ok=True)
        (settings.root / "shop" / "__init__.py").write_text(
            f"{code}\ndef features(frame): return frame\n"
        )
        register(settings, c, report, customers)
    for version in (1, 2, 3, 5, 6):
        registry.approve(f"churn/{version}", by="alice", settings=settings)
    yield settings
    sys.path.remove(str(settings.root))
    sys.modules.pop("shop", None)


def register(settings, c, report, customers):
    from sklearn.linear_model import LogisticRegression

    fitted = fit(
        customers,
        OBJECTIVE,
        Candidate("logistic", LogisticRegression(max_iter=200)),
        {"C": c},
        features="shop.features",
    )
    with tracking.start_run(settings, name="train"):
        report_uri = tracking.log_folder(report, "report", settings=settings)
        registry.register(
            "churn",
            fitted.save(settings),
            report_uri=report_uri,
            dataset="churn@1",
            profile=profile(CUSTOMERS),
            objective=OBJECTIVE,
            by="alice",
            settings=settings,
        )


class Hammer:
    "Clients that ask without a pause and count the answers."

    def __init__(self, url, clients=2):
        self.url, self.seen, self.stop, self.clients = url, Counter(), threading.Event(), clients

    def ask(self):
        with httpx.Client(headers={"content-type": "application/json"}, timeout=60) as http:
            while not self.stop.is_set():
                try:
                    answer = http.post(f"{self.url}/predict", content=ROW)
                except httpx.HTTPError as e:
                    self.seen[repr(e)] += 1
                else:
                    self.seen[
                        answer.json()["model_version"] if answer.status_code == 200 else answer.text
                    ] += 1

    def __enter__(self):
        self.threads = [threading.Thread(target=self.ask) for _ in range(self.clients)]
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for t in self.threads:
            t.join()

    def rest(self, *versions):
        "Until each of these versions has answered from now on."
        self.seen.clear()
        wait(lambda: all(self.seen[v] >= 5 for v in versions) or set(self.seen) - set("123"), 60)


def wait(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.1)


def newest(settings):
    return events.newest(settings.events, "deployed", "churn")


def test_from_staging_to_production(shop):
    staged = deployment.stage("churn/1", by="alice", settings=shop)
    assert staged.ready and staged.url.endswith("/staging/churn")
    good = acceptance.accept("churn/1", CUSTOMERS, latency_ms=2000, settings=shop)
    assert good.passed, good.table.rows()
    bad = acceptance.accept(
        "churn/1", CUSTOMERS, predictions=NOBODY, latency_ms=0.001, settings=shop
    )
    failed = set(bad.table.filter(~pl.col("passed"))["check"])
    assert failed == {"parity with the offline pipeline", "latency"} and "✗" in bad._repr_html_()
    assert events.newest(shop.events, "failed_acceptance", "churn/1")["details"]["checks"]
    with pytest.raises(DeploymentError, match="failed acceptance tests after alice approved it"):
        deployment.promote("churn/1", by="bob", settings=shop)
    with pytest.raises(ApprovalError, match="latency"):
        registry.approve("churn/1", by="alice", settings=shop)
    registry.approve("churn/1", by="alice", despite="the test was wrong, on purpose", settings=shop)
    promoted = deployment.promote("churn/1", by="bob", settings=shop)
    assert promoted.ready and promoted.versions == {"1": 100} and "curl" in promoted._repr_html_()
    assert newest(shop)["details"]["because"] == registry.approval("churn/1", settings=shop).id
    assert registry.resolve("churn@champion", settings=shop).version == "1"
    stages = lake.scan(shop.table("_predictions", "churn")).collect()["stage"].unique().to_list()
    assert stages == ["staging"], "promotion itself must not predict in production"
    with pytest.raises(DeploymentError, match="stage it first"):
        acceptance.accept("churn/2", CUSTOMERS, settings=shop)


def test_a_live_endpoint_answers_only_for_our_names_and_has_no_websocket(shop):
    url, port = applications.endpoint("churn", settings=shop).url, shop.serve.port
    with httpx.Client() as http:
        answers = [
            http.get(f"{url}/healthz", headers={"host": host})
            for host in (f"localhost:{port}", "evil.example", f"evil.example:{port}")
        ]
    assert [a.status_code for a in answers] == [200, 421, 421]
    assert "frame-ancestors 'none'" in answers[0].headers["content-security-policy"]
    upgrade = (
        "GET /models/churn/predict HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(upgrade.encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 4")


def test_without_approval_nothing_is_deployed(shop):
    "Nor a part of the traffic, nor a copy: a shadow sees real inputs in the production process."
    before, ways = newest(shop), ({}, {"canary": 5}, {"shadow": True})
    for way in ways:
        with pytest.raises(DeploymentError, match="churn/4 has no approval: approve it first"):
            deployment.deploy("churn/4", by="bob", **way, settings=shop)
    registry.reject("churn/4", by="carol", settings=shop)
    for way in ways:
        with pytest.raises(DeploymentError, match="rejected by carol, and a rejection is final"):
            deployment.deploy("churn/4", by="bob", **way, settings=shop)
    assert newest(shop) == before


def test_an_approval_by_the_rule_does_not_count_where_a_person_must_decide(shop, monkeypatch):
    version = registry.resolve("churn/2", settings=shop)
    approval = registry.approval("churn/2", settings=shop)
    by_rule = replace(approval, by="rule")
    monkeypatch.setattr(deployment.registry, "approval", lambda *_, **__: by_rule)
    assert conditions.require_approved(version, settings=shop) == approval.id
    monkeypatch.setenv("MLOPS_NB__DEPLOY__APPROVAL", "person")
    with pytest.raises(DeploymentError, match="approved by the rule, but a person has to decide"):
        conditions.require_approved(version, settings=load_settings(shop.root))


def test_what_is_not_confirmed_is_shown_and_not_done(shop, monkeypatch):
    "Staging, acceptance, approval, promotion, monitoring: nothing is started or recorded."
    for module, name in ((deployment.cluster, "start_serve"), (deployment, "decide")):
        monkeypatch.setattr(module, name, None)
    before = events.history(shop.events).collect()
    options = {"settings": shop, "confirm": False}
    previews = {
        "would be served for tests at http://": deployment.stage("churn/2", **options),
        "would be tested": acceptance.accept("churn/2", CUSTOMERS.head(7), **options),
        "stays approved by alice": registry.approve("churn/2", **options),
        "churn/4": registry.approve("churn/4", **options),
        "would get all traffic of churn": deployment.promote("churn/2", by="bob", **options),
        "would be judged": monitoring.monitor("churn", **options),
    }
    for words, preview in previews.items():
        assert isinstance(preview, Preview) and words in preview.action
        html = preview._repr_html_()
        assert "Nothing was done." in html and "confirm = True" in html
    promotion = previews["would get all traffic of churn"].facts
    assert promotion["would serve"] == "churn/2: 100 %"
    assert promotion["decision"] == "approved by alice"
    serving = newest(shop)["details"]["versions"]
    assert all(
        f"churn/{version}: {share:g} %" in promotion["serves now"]
        for version, share in serving.items()
    )
    unapproved = deployment.promote("churn/4", by="bob", **options).facts
    assert unapproved["decision"].startswith(("none yet", "rejected by carol"))
    assert events.history(shop.events).collect().equals(before)


def test_no_request_is_lost_while_versions_change(shop):
    url = applications.endpoint("churn", settings=shop).url
    with Hammer(url) as hammer:
        hammer.rest("1")
        deployment.promote("churn/2", by="bob", settings=shop)
        assert set(hammer.seen) == {"1", "2"}
        hammer.rest("2")
        assert deployment.rollback("churn", by="bob", note="try", settings=shop).versions == {
            "1": 100
        }
        hammer.rest("1")
        deployment.deploy("churn/2", by="bob", canary=30, settings=shop)
        hammer.rest("1", "2")
        deployment.deploy("churn/2", by="bob", shadow=True, settings=shop)
        hammer.rest("1")
    assert set(hammer.seen) == {"1"}
    applications.ask("production-churn", "flush")
    shadows = lake.scan(shop.table("_predictions", "churn")).filter(stage="shadow").collect()
    assert set(shadows["model_version"]) == {"2"}


def test_a_rollback_of_a_rollback_goes_further_back(shop):
    assert deployment.rollback("churn", by="bob", note="no shadow", settings=shop).versions == {
        "1": 70,
        "2": 30,
    }
    assert deployment.rollback("churn", by="bob", note="no canary", settings=shop).versions == {
        "1": 100
    }
    with pytest.raises(DeploymentError, match="no earlier"):
        deployment.rollback("churn", by="bob", note="too far", settings=shop)


def test_a_canary_of_more_than_half_the_traffic_stays_the_challenger(shop):
    end = deployment.deploy("churn/2", by="bob", canary=60, settings=shop)
    assert end.versions == {"1": 40, "2": 60} and (end.champion, end.challenger) == ("1", "2")
    assert [r["champion"] for r in end.replicas] == ["1"], (
        "documentation and signature are the champion's"
    )
    assert registry.resolve("churn@champion", settings=shop).ref == "churn/1"
    assert registry.resolve("churn@challenger", settings=shop).ref == "churn/2"
    assert aliases(shop, "churn") == {"champion": "1", "challenger": "2"}
    assert [m["ref"] for m in overview.state(shop)["models"] if m["champion"]] == ["churn/1"]
    shown = pages.control_page(overview.state(shop))
    assert "churn/1 champion: 40 %" in shown and "churn/2 challenger: 60 %" in shown
    assert references.champion("churn", settings=shop) == "churn/1"
    assert (
        lineage.trace("churn@champion", settings=shop).nodes["endpoint:churn"]["facts"]["champion"]
        == "1"
    )
    with pytest.raises(DeploymentError, match="churn/1 is the champion already"):
        deployment.deploy("churn/1", by="bob", canary=10, settings=shop)
    end = deployment.rollback("churn", by="bob", note="no canary", settings=shop)
    assert (end.versions, end.champion, end.challenger) == ({"1": 100}, "1", None)
    assert aliases(shop, "churn") == {"champion": "1"}, "no challenger, no alias"


def test_an_event_of_an_earlier_release_is_read_by_its_shares():
    old = {"versions": {"1": 40, "2": 60}, "bundles": {}, "library": ""}
    assert (Desired.of(old).champion, Desired.of(old).challenger) == ("2", "1")
    assert Desired.of(old | {"champion": "1", "challenger": "2"}).champion == "1"
    assert Desired({}, {}).champion is None


@pytest.mark.parametrize("way", [{"canary": 10}, {"shadow": True}])
def test_a_version_with_other_inputs_cannot_stand_beside_the_champion(shop, way):
    before = newest(shop)
    says = (
        "churn/5 cannot stand beside the champion churn/1.*column 'tenure' is unknown to it; "
        "column 'monthly_charges' is integer in it, float for the champion"
    )
    with pytest.raises(DeploymentError, match=says):
        deployment.deploy("churn/5", by="bob", **way, settings=shop)
    assert newest(shop) == before


def test_a_version_with_other_inputs_can_be_promoted(shop):
    assert deployment.promote("churn/5", by="bob", settings=shop).versions == {"5": 100}
    assert deployment.rollback("churn", by="bob", note="back", settings=shop).versions == {"1": 100}


@pytest.mark.parametrize("way", [{"canary": 0}, {"canary": 100}, {"canary": 10, "shadow": True}])
def test_a_share_that_cannot_be_is_refused(shop, way):
    with pytest.raises(DeploymentError, match="expected a share of more than 0 and less than 100"):
        deployment.deploy("churn/2", by="bob", **way, settings=shop)


def test_a_version_that_does_not_load_leaves_everything_as_it_was(shop, monkeypatch):
    before, real = newest(shop), applications.target

    def elsewhere(ref, *, settings, **state):
        version, desired = real(ref, settings=settings, **state)
        return version, Desired(
            desired.versions, {v: "/nowhere" for v in desired.bundles}, desired.library
        )

    monkeypatch.setattr(deployment, "target", elsewhere)
    with pytest.raises(DeploymentError, match="unchanged"):
        deployment.promote("churn/2", by="bob", settings=shop)
    assert newest(shop) == before and applications.endpoint("churn", settings=shop).ready


def test_a_change_that_fails_half_way_is_taken_back(shop, monkeypatch):
    real, calls = deployment.realize, []

    def fails_once(*args, **named):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("the cluster lost a node")
        return real(*args, **named)

    monkeypatch.setattr(deployment, "realize", fails_once)
    with pytest.raises(DeploymentError, match="as before.*lost a node"):
        deployment.promote("churn/2", by="bob", settings=shop)
    assert newest(shop)["details"]["versions"] == {"1": 100} and newest(shop)["details"]["undone"]
    assert applications.endpoint("churn", settings=shop).ready


@pytest.fixture
def on_paper(shop, monkeypatch):
    "Decisions without their consequences: no replica is asked, no alias is set."
    for module, name in (
        (deployment, "prepare"),
        (deployment, "realize"),
        (deployment, "endpoint"),
        (deployment, "unstage"),
        (roles, "mirror"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    yield shop
    monkeypatch.undo()
    deployment.restore(shop)


OPERATIONS = {
    "promote": lambda settings: deployment.promote("churn/2", by="bob", settings=settings),
    "canary": lambda settings: deployment.deploy("churn/2", by="bob", canary=10, settings=settings),
    "shadow": lambda settings: deployment.deploy(
        "churn/2", by="bob", shadow=True, settings=settings
    ),
    "rollback": lambda settings: deployment.rollback(
        "churn", by="bob", note="x", settings=settings
    ),
    "undeploy": lambda settings: deployment.undeploy("churn", by="bob", settings=settings),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_decision_between_any_two_reads_is_not_overwritten(on_paper, monkeypatch, operation):
    "Carol decides after the first read, the second, and so on, also within the comparison."
    details = deployed(on_paper, 1)
    for _ in range(2):
        events.record(
            on_paper.events,
            "deployed",
            "churn",
            by="ann",
            **details,
            previous=newest(on_paper)["id"],
        )
    read, reads, present = events.newest, [], newest(on_paper)["details"]

    def overtaken(log, kind, subject):
        event = read(log, kind, subject)
        if subject == "churn" and "deployed" in kind:
            reads.append(event)
            if len(reads) == nth:
                events.record(on_paper.events, "deployed", "churn", by="carol", **present)
        return event

    monkeypatch.setattr(events, "newest", overtaken)
    for nth in range(1, 20):
        reads.clear()
        try:
            OPERATIONS[operation](on_paper)
        except EventConflict as e:
            assert "carol" in str(e)
        latest = read(on_paper.events, "deployed", "churn")
        if len(reads) < nth:
            break
        assert latest["by"] == "carol", f"what was decided after read {nth} was overwritten"
    assert latest["by"] == "bob" and nth > 2, "without a decision in between, it is decided"
    monkeypatch.setattr(events, "newest", read)
    events.record(on_paper.events, "deployed", "churn", by="ann", **details)


def test_of_two_who_decide_at_once_one_is_told(shop, monkeypatch):
    real = deployment.prepare

    def meanwhile(model, details):
        old = newest(shop)
        events.record(shop.events, "deployed", model, by="carol", **old["details"])
        return real(model, details)

    monkeypatch.setattr(deployment, "prepare", meanwhile)
    with pytest.raises(EventConflict, match="carol"):
        deployment.promote("churn/2", by="bob", settings=shop)
    assert newest(shop)["by"] == "carol"


def test_waiting_for_a_state_that_was_replaced_is_an_error(shop):
    "And does not wait for it until the time is out."
    first = newest(shop)
    events.record(shop.events, "deployed", "churn", by="carol", **first["details"])
    with pytest.raises(EventConflict, match="deployed meanwhile by carol"):
        deployment.realize("churn", first["id"], settings=shop)
    began = time.monotonic()
    with pytest.raises(EventConflict, match="deployed meanwhile by carol"):
        applications.wait_until_serving(
            "churn", Desired.of(first["details"], event=first["id"]), settings=shop
        )
    assert time.monotonic() - began < 30
    deployment.restore(shop)


def test_a_death_between_decision_and_alias_is_mended_when_endpoints_come_up(shop, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(roles, "mirror", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            deployment.promote("churn/2", by="bob", settings=shop)
    assert newest(shop)["details"]["champion"] == "2" and aliases(shop, "churn") == {
        "champion": "1"
    }
    assert registry.resolve("churn@champion", settings=shop).ref == "churn/2"
    deployment.restore(shop)
    assert aliases(shop, "churn") == {"champion": "2"}


def test_two_promotions_at_once_leave_traffic_and_alias_on_one_version(shop):
    conflicts = []

    def promote(ref):
        try:
            deployment.promote(ref, by=ref, settings=shop)
        except EventConflict as e:
            conflicts.append(str(e))

    threads = [threading.Thread(target=promote, args=(f"churn/{v}",)) for v in (1, 6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    champion = newest(shop)["details"]["champion"]
    end = applications.endpoint("churn", settings=shop)
    assert champion in ("1", "6") and len(conflicts) <= 1
    assert (end.versions, end.ready, aliases(shop, "churn")) == (
        {champion: 100},
        True,
        {"champion": champion},
    )
    deployment.promote("churn/1", by="bob", settings=shop)


def test_a_killed_replica_loses_no_acknowledged_prediction(shop):
    "Its successor serves what the audit log says, and brings the log home."
    settings, url = shop, applications.endpoint("churn", settings=shop).url
    replica = applications.endpoint("churn", settings=shop).replicas[0]
    ids = []
    with httpx.Client(headers={"content-type": "application/json"}, timeout=60) as http:
        for _ in range(30):
            ids += [
                p["prediction_id"]
                for p in http.post(f"{url}/predict", content=ROW).json()["predictions"]
            ]
    os.kill(replica["pid"], signal.SIGKILL)
    wait(
        lambda: [
            r for r in applications.ask("production-churn", "status") if r["pid"] != replica["pid"]
        ],
        120,
    )
    applications.wait_until_serving("churn", Desired.newest(settings, "churn"), settings=settings)
    applications.ask("production-churn", "flush")
    found = (
        lake.scan(settings.table("_predictions", "churn"))
        .filter(pl.col("prediction_id").is_in(ids))
        .collect()
    )
    assert sorted(found["prediction_id"]) == sorted(ids)


def test_another_library_gets_replicas_of_its_own_and_no_request_is_lost(shop):
    with pytest.raises(DeploymentError, match="library"):
        deployment.deploy("churn/3", by="bob", canary=10, settings=shop)
    with Hammer(applications.endpoint("churn", settings=shop).url, clients=1) as hammer:
        hammer.rest("1")
        promoted = deployment.promote("churn/3", by="bob", settings=shop)
        assert promoted.versions == {"3": 100}
        hammer.rest("3")
    assert set(hammer.seen) == {"3"}


def test_down_and_restored(shop):
    deployment.undeploy("churn", by="bob", note="spring cleaning", settings=shop)
    assert (
        not applications.endpoint("churn", settings=shop).ready
        and deployment.restore(shop)[0].versions == {}
    )
    events.record(shop.events, "deployed", "churn", by="bob", **deployed(shop, 1))
    assert deployment.restore(shop)[0].ready


def deployed(settings, version):
    _, desired = applications.target(f"churn/{version}", settings=settings)
    return {
        "versions": desired.versions,
        "bundles": desired.bundles,
        "library": desired.library,
        "shadow": [],
    }


def test_a_network_without_tokens_is_refused(tmp_path):
    open_house = create(tmp_path / "open", serve={"host": "0.0.0.0"})
    with pytest.raises(ClusterError, match="tokens"):
        deployment.realize("churn", settings=open_house)


def test_a_rollback_brings_no_rejected_version_back(tmp_path):
    "It names the rejection, and the version before."
    settings, previous = create(tmp_path), None
    for version in ("1", "6", "2"):
        details = Desired({version: 100}, {version: "/nowhere"}).details
        previous = events.record(
            settings.events, "deployed", "churn", by="ann", **details, previous=previous
        )
    approvals.record_rejection("churn/6", "d1g3st", by="carol", note="unfair", settings=settings)
    says = (
        "churn/6 was served before, but carol rejected it since: unfair. "
        "Before it churn/1 was served: `mlops-nb deploy churn/1`"
    )
    with pytest.raises(DeploymentError, match=says):
        deployment.rollback("churn", by="bob", note="slow", settings=settings)
    approvals.record_rejection("churn/1", "d1g3st", by="carol", settings=settings)
    with pytest.raises(
        DeploymentError, match="No version was served before it: promote another one"
    ):
        deployment.rollback("churn", by="bob", note="slow", settings=settings)
    assert newest(settings)["id"] == previous


def test_a_version_rejected_while_it_was_made_ready_is_not_deployed(tmp_path, monkeypatch):
    settings, state = create(tmp_path), Desired({"2": 100}, {"2": "/nowhere"})
    for module, name in ((cluster, "start_serve"), (deployment, "realize"), (roles, "mirror")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    reject = lambda *_: approvals.record_rejection(
        "churn/2", "d1g3st", by="carol", settings=settings
    )
    monkeypatch.setattr(deployment, "prepare", reject)
    with pytest.raises(
        DeploymentError, match="churn/2 was rejected by carol, and a rejection is final"
    ):
        deployment.decide("churn", state, before=None, by="bob", settings=settings)
    assert newest(settings) is None
    id_ = events.record(
        settings.events, "deployed", "churn", by="ann", **state.details, previous=None
    )
    beside = Desired(
        {"2": 90, "3": 10}, {"2": "/nowhere", "3": "/nowhere"}, champion="2", challenger="3"
    )
    deployment.decide(
        "churn", beside, before=newest(settings), by="bob", previous=id_, settings=settings
    )
    assert newest(settings)["details"]["versions"] == {"2": 90, "3": 10}, (
        "what serves already is not stopped by that"
    )


@pytest.mark.parametrize(("version", "serves"), [("1", True), ("2", True), ("3", False)])
def test_who_rejects_what_serves_or_is_a_shadow_is_told(tmp_path, capsys, version, serves):
    settings = create(tmp_path)
    state = Desired({"1": 100}, {"1": "/nowhere", "2": "/nowhere"}, shadow=("2",))
    events.record(settings.events, "deployed", "churn", by="ann", **state.details)
    rejected = SimpleNamespace(
        name="churn", version=version, ref=f"churn/{version}", aliases=("mine",)
    )
    cli._warn_of_service(rejected, settings)
    assert (f"churn/{version} still serves" in capsys.readouterr().out) is serves


def test_an_acceptance_without_checks_has_not_passed():
    nothing = Acceptance("churn/1", ())
    assert nothing.passed is False and "failed" in nothing._repr_html_()
    assert nothing.table.columns == ["check", "passed", "expected", "got"]


def test_an_acceptance_with_one_failure_has_not_passed():
    checks = (AcceptanceCheck("a", True, "", ""), AcceptanceCheck("b", False, "", "<b>"))
    failed = Acceptance("churn/1", checks)
    assert not failed.passed and "&lt;b&gt;" in failed._repr_html_()
    assert failed.table.filter(~pl.col("passed"))["got"].to_list() == ["<b>"]


def test_an_endpoint_that_is_not_there_is_named():
    import httpx

    from mlops_nb.service.deployment.applications import scored

    gone = httpx.MockTransport(lambda request: httpx.Response(404, json={"detail": "Not Found"}))
    with httpx.Client(transport=gone, base_url="http://h/models/m") as http:
        with pytest.raises(
            DeploymentError, match="no endpoint at http://h/models/m/: deploy a version first"
        ):
            scored(http, [{"x": 1}], 10)


# ---- other tasks

RNG = np.random.default_rng(0)
DATES = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 7, 18), eager=True)
FLOWERS = pl.DataFrame(
    {
        "flower": np.arange(200),
        "length": RNG.normal(5, 1, 200),
        "seen": DATES,
        "soil": RNG.choice(["clay", "sand"], 200),
        "times": RNG.integers(1, 5, 200),
        "note": ["remembered later"] * 200,
    }
)
SPECIES = pl.when(pl.col("length") < 4.5).then(pl.lit("1")).when(pl.col("length") < 5.5)
CLASSES = FLOWERS.with_columns(target=SPECIES.then(pl.lit("2")).otherwise(pl.lit("3")))
SIZES = FLOWERS.with_columns(target=pl.col("length") * 1e6 + RNG.normal(0, 1e5, 200))
ABOUT = {"question": "?", "target": "target", "key": "flower", "weight": "times"}


def of_task(settings, task, rows, estimator):
    "Register and approve a model of a task, as `flowers`. Return its version."
    objective = Objective(name="flowers", task=task, ignore={"note": "written later"}, **ABOUT)
    fitted = fit(rows, objective, Candidate("other", estimator))
    folder = settings.root / "report"
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text('{"passed": true}')
    with tracking.start_run(settings, name="train"):
        version = registry.register(
            "flowers",
            fitted.save(settings),
            report_uri=tracking.log_folder(folder, "report", settings=settings),
            dataset="flowers@1",
            profile=profile(rows),
            objective=objective,
            by="alice",
            settings=settings,
        )
    registry.approve(version.ref, by="alice", settings=settings)
    return version, fitted


def labels_of(http, *labels) -> list[int]:
    "The status of each reported label."
    posts = [{"labels": [{"prediction_id": "a", "label": label}]} for label in labels]
    return [http.post("/feedback", content=orjson.dumps(post)).status_code for post in posts]


def test_a_model_of_another_task_is_accepted_served_logged_and_put_beside(shop):
    "Several classes first, then a regression as their canary: both answer under one name."
    from sklearn.linear_model import LinearRegression, LogisticRegression

    classes, by_class = of_task(shop, "multiclass", CLASSES, LogisticRegression(max_iter=500))
    deployment.stage(classes.ref, by="alice", settings=shop)
    verdict = acceptance.accept(classes.ref, CLASSES, latency_ms=5000, settings=shop)
    assert verdict.passed, verdict.table.rows()
    wrong = by_class.task.constant(200)
    verdict = acceptance.accept(
        classes.ref, CLASSES, predictions=wrong, latency_ms=5000, settings=shop
    )
    failed = verdict.table.filter(~pl.col("passed"))["check"].to_list()
    assert failed == ["parity with the offline pipeline"]
    with pytest.raises(DeploymentError, match="expected 200 predictions of a multiclass task"):
        acceptance.accept(classes.ref, CLASSES, predictions=wrong.take([0]), settings=shop)
    assert acceptance.accept(classes.ref, CLASSES, latency_ms=5000, settings=shop).passed
    end = deployment.promote(classes.ref, by="alice", settings=shop)
    sent = FLOWERS.drop("flower", "times", "note").with_columns(pl.col("seen").cast(pl.String))
    answer = end.predict(sent)
    assert answer["prediction"].to_list() == by_class.predict(CLASSES).labels
    assert answer.schema["probabilities"] == pl.Struct(dict.fromkeys("123", pl.Float64))
    with applications.http_client("flowers", settings=shop) as http:
        assert labels_of(http, "1", 2, 3.0, 4, 2.5) == [200, 200, 200, 422, 422]

    sizes, by_size = of_task(shop, "regression", SIZES, LinearRegression())
    deployment.stage(sizes.ref, by="alice", settings=shop)
    verdict = acceptance.accept(sizes.ref, SIZES, latency_ms=5000, settings=shop)
    assert verdict.passed, verdict.table.rows()
    deployment.deploy(sizes.ref, by="alice", canary=50, settings=shop)
    predicted = end.predict(sent, rows=5)
    of_sizes = predicted.filter(model_version=sizes.version)
    assert 0 < of_sizes.height < 200 and of_sizes["low"].null_count() == 0
    with applications.http_client("flowers", settings=shop) as http:
        assert labels_of(http, "1", 4, 2.5, "many") == [200, 200, 200, 422]
        assert len(http.get("/docs").text) > 1000
    applications.ask("production-flowers", "flush")
    log = lake.scan(shop.table("_predictions", "flowers")).filter(stage="production").collect()
    numbers = log.filter(model_version=sizes.version)
    assert by_size.task.usable(by_size.task.from_log(numbers)).all()
    assert by_class.task.usable(
        by_class.task.from_log(log.filter(model_version=classes.version))
    ).all()
    deployment.undeploy("flowers", by="alice", settings=shop)
