"Deployment on a real Ray head over real HTTP: what is promised while versions change, and when something fails."
import os
import signal
import socket
import threading
import time
from collections import Counter

import httpx
import numpy as np
import orjson
import polars as pl
import pytest

from mlops_nb import cluster, deployment, events, lake, registry, tracking
from mlops_nb.candidate import Candidate, fit
from mlops_nb.deployment import applications
from mlops_nb.deployment.acceptance import Acceptance
from mlops_nb.objective import Objective
from mlops_nb.profiles import profile
from mlops_nb.serving import Desired
from mlops_nb.settings import create

pytestmark = pytest.mark.cluster
OBJECTIVE = Objective(name="churn", question="Who will leave?", target="churn", positive="Yes", key="customer_id")
CUSTOMERS = pl.read_parquet(os.path.join(os.path.dirname(__file__), "../data/telco_churn.parquet")).head(1500)
ROW = orjson.dumps({"rows": [CUSTOMERS.drop("churn").row(0, named=True)]})


@pytest.fixture(scope="module")
def shop(ray_cluster, tmp_path_factory):
    "A workspace whose models are churn/1 and /2 (one library), /3 (another library), /4 (as 1), all approved but 4."
    settings = create(tmp_path_factory.mktemp("shop"), workspace={"package": "shop"}, serve={"flush_seconds": "0.2"})
    report = tmp_path_factory.mktemp("report")
    (report / "report.json").write_text('{"passed": true}')
    for c, code in ((1.0, "X = 1"), (0.001, "X = 1"), (0.1, "X = 2"), (0.5, "X = 1")):
        (settings.root / "shop").mkdir(exist_ok=True)
        (settings.root / "shop" / "__init__.py").write_text(code)
        register(settings, c, report)
    for version in (1, 2, 3): registry.approve(f"churn/{version}", by="alice", settings=settings)
    return settings


def register(settings, c, report):
    from sklearn.linear_model import LogisticRegression
    fitted = fit(CUSTOMERS, OBJECTIVE, Candidate("logistic", LogisticRegression(max_iter=200)), {"C": c})
    with tracking.start_run(settings, name="train"):
        report_uri = tracking.log_folder(report, "report", settings=settings)
        registry.register("churn", fitted.save(settings), report_uri=report_uri, dataset="churn@1",
                          profile=profile(CUSTOMERS), objective=OBJECTIVE, by="alice", settings=settings)


class Hammer:
    "Clients that ask without a pause and count the answers."
    def __init__(self, url, clients=2):
        self.url, self.seen, self.stop, self.clients = url, Counter(), threading.Event(), clients

    def ask(self):
        with httpx.Client(headers={"content-type": "application/json"}, timeout=60) as http:
            while not self.stop.is_set():
                try: answer = http.post(f"{self.url}/predict", content=ROW)
                except httpx.HTTPError as e: self.seen[repr(e)] += 1
                else: self.seen[answer.json()["model_version"] if answer.status_code == 200 else answer.text] += 1

    def __enter__(self):
        self.threads = [threading.Thread(target=self.ask) for _ in range(self.clients)]
        for t in self.threads: t.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for t in self.threads: t.join()

    def rest(self, *versions):
        "Until each of these versions has answered from now on."
        self.seen.clear()
        wait(lambda: all(self.seen[v] >= 5 for v in versions) or set(self.seen) - set("123"), 60)


def wait(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.1)


def newest(settings): return events.newest(settings.events, "deployed", "churn")


def test_from_staging_to_production(shop):
    staged = deployment.stage("churn/1", by="alice", settings=shop)
    assert staged.ready and staged.url.endswith("/staging/churn")
    good = deployment.accept("churn/1", CUSTOMERS, latency_ms=2000, settings=shop)
    assert good.passed, good.table.rows()
    bad = deployment.accept("churn/1", CUSTOMERS, probability=np.zeros(1500), latency_ms=0.001, settings=shop)
    failed = set(bad.table.filter(~pl.col("passed"))["check"])
    assert failed == {"parity with the offline pipeline", "latency"} and "✗" in bad._repr_html_()
    assert events.newest(shop.events, "failed_acceptance", "churn/1")["details"]["checks"]
    promoted = deployment.promote("churn/1", by="bob", settings=shop)
    assert promoted.ready and promoted.versions == {"1": 100} and "curl" in promoted._repr_html_()
    assert newest(shop)["details"]["because"] == registry.approval("churn/1", settings=shop)["id"]
    assert registry.resolve("churn@champion", settings=shop).version == "1"
    stages = lake.scan(shop.table("_predictions", "churn")).collect()["stage"].unique().to_list()
    assert stages == ["staging"], "promotion itself must not predict in production"
    with pytest.raises(deployment.DeploymentError, match="stage it first"):
        deployment.accept("churn/2", CUSTOMERS, settings=shop)


def test_a_live_endpoint_answers_only_for_our_names_and_has_no_websocket(shop):
    url, port = deployment.endpoint("churn", settings=shop).url, shop.serve.port
    with httpx.Client() as http:
        answers = [http.get(f"{url}/healthz", headers={"host": host}) for host in
                   (f"localhost:{port}", "evil.example", f"evil.example:{port}")]
    assert [a.status_code for a in answers] == [200, 421, 421]
    assert "frame-ancestors 'none'" in answers[0].headers["content-security-policy"]
    upgrade = ("GET /models/churn/predict HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
               "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(upgrade.encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 4")


def test_without_approval_nothing_is_deployed(shop):
    before = newest(shop)
    with pytest.raises(deployment.DeploymentError, match="approve"):
        deployment.promote("churn/4", by="bob", settings=shop)
    registry.reject("churn/4", by="carol", settings=shop)
    with pytest.raises(deployment.DeploymentError, match="rejected by carol"):
        deployment.deploy("churn/4", by="bob", canary=5, settings=shop)
    assert newest(shop) == before


def test_no_request_is_lost_while_versions_change(shop):
    url = deployment.endpoint("churn", settings=shop).url
    with Hammer(url) as hammer:
        hammer.rest("1")
        deployment.promote("churn/2", by="bob", settings=shop)
        assert set(hammer.seen) == {"1", "2"}
        hammer.rest("2")
        assert deployment.rollback("churn", by="bob", note="try", settings=shop).versions == {"1": 100}
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
    assert deployment.rollback("churn", by="bob", note="no shadow", settings=shop).versions == {"1": 70, "2": 30}
    assert deployment.rollback("churn", by="bob", note="no canary", settings=shop).versions == {"1": 100}
    with pytest.raises(deployment.DeploymentError, match="no earlier"):
        deployment.rollback("churn", by="bob", note="too far", settings=shop)


def test_a_version_that_does_not_load_leaves_everything_as_it_was(shop, monkeypatch):
    before, real = newest(shop), applications.target
    def elsewhere(ref, settings, **state):
        version, desired = real(ref, settings, **state)
        return version, Desired(desired.versions, {v: "/nowhere" for v in desired.bundles}, desired.library)
    monkeypatch.setattr(deployment, "target", elsewhere)
    with pytest.raises(deployment.DeploymentError, match="unchanged"):
        deployment.promote("churn/2", by="bob", settings=shop)
    assert newest(shop) == before and deployment.endpoint("churn", settings=shop).ready


def test_a_change_that_fails_half_way_is_taken_back(shop, monkeypatch):
    real, calls = deployment.realize, []
    def fails_once(*args):
        calls.append(args)
        if len(calls) == 1: raise RuntimeError("the cluster lost a node")
        return real(*args)
    monkeypatch.setattr(deployment, "realize", fails_once)
    with pytest.raises(deployment.DeploymentError, match="as before.*lost a node"):
        deployment.promote("churn/2", by="bob", settings=shop)
    assert newest(shop)["details"]["versions"] == {"1": 100} and newest(shop)["details"]["undone"]
    assert deployment.endpoint("churn", settings=shop).ready


def test_of_two_who_decide_at_once_one_is_told(shop, monkeypatch):
    real = deployment.prepare
    def meanwhile(model, details):
        old = newest(shop)
        events.record(shop.events, "deployed", model, by="carol", **old["details"])
        return real(model, details)
    monkeypatch.setattr(deployment, "prepare", meanwhile)
    with pytest.raises(events.Conflict, match="carol"): deployment.promote("churn/2", by="bob", settings=shop)
    assert newest(shop)["by"] == "carol"


def test_a_killed_replica_loses_no_acknowledged_prediction(shop):
    "Its successor serves what the audit log says, and brings the log home."
    settings, url = shop, deployment.endpoint("churn", settings=shop).url
    replica = deployment.endpoint("churn", settings=shop).replicas[0]
    ids = []
    with httpx.Client(headers={"content-type": "application/json"}, timeout=60) as http:
        for _ in range(30):
            ids += [p["prediction_id"] for p in http.post(f"{url}/predict", content=ROW).json()["predictions"]]
    os.kill(replica["pid"], signal.SIGKILL)
    wait(lambda: [r for r in applications.ask("production-churn", "status") if r["pid"] != replica["pid"]], 120)
    applications.settled(settings, "churn", Desired.newest(settings, "churn"))
    applications.ask("production-churn", "flush")
    found = lake.scan(settings.table("_predictions", "churn")).filter(pl.col("prediction_id").is_in(ids)).collect()
    assert sorted(found["prediction_id"]) == sorted(ids)


def test_another_library_gets_replicas_of_its_own_and_no_request_is_lost(shop):
    with pytest.raises(deployment.DeploymentError, match="library"):
        deployment.deploy("churn/3", by="bob", canary=10, settings=shop)
    with Hammer(deployment.endpoint("churn", settings=shop).url, clients=1) as hammer:
        hammer.rest("1")
        promoted = deployment.promote("churn/3", by="bob", settings=shop)
        assert promoted.versions == {"3": 100}
        hammer.rest("3")
    assert set(hammer.seen) == {"3"}


def test_down_and_restored(shop):
    deployment.undeploy("churn", by="bob", note="spring cleaning", settings=shop)
    assert not deployment.endpoint("churn", settings=shop).ready and deployment.restore(shop)[0].versions == {}
    events.record(shop.events, "deployed", "churn", by="bob", **deployed(shop, 1))
    assert deployment.restore(shop)[0].ready


def deployed(settings, version):
    _, desired = applications.target(f"churn/{version}", settings)
    return {"versions": desired.versions, "bundles": desired.bundles, "library": desired.library, "shadow": []}


def test_a_network_without_tokens_is_refused(tmp_path):
    open_house = create(tmp_path / "open", serve={"host": "0.0.0.0"})
    with pytest.raises(cluster.ClusterError, match="tokens"): deployment.realize(open_house, "churn")


def test_an_acceptance_with_one_failure_has_not_passed():
    table = pl.DataFrame({"check": ["a", "b"], "passed": [True, False], "found": ["", "<b>"], "demanded": ["", ""]})
    assert not Acceptance("churn/1", table).passed and "&lt;b&gt;" in Acceptance("churn/1", table)._repr_html_()
