"After `make demo`: what its summary promises is true, and `mlops-nb down` leaves nothing behind."

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import polars as pl
import psutil

from mlops_nb.core import cluster, events, head, lake
from mlops_nb.core.settings import load_settings

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).parent / "mlops-nb"


def ask(*words: str) -> str:
    return subprocess.run(
        [COMMAND, *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


settings = load_settings(ROOT)
status = json.loads(ask("status", "--json"))
assert {"run", "models", "endpoints", "alerts"} <= status.keys()
(champion,) = [m for m in status["models"] if m["champion"]]
assert champion["metrics"]["roc_auc"]["high"] >= 0.83, champion["metrics"]
(endpoint,) = status["endpoints"]
assert endpoint["state"] == "ready" and status["run"]["state"] == "done"

customer = (
    pl.read_parquet(ROOT / "data/telco_churn.parquet")
    .drop("churn", "customer_id")
    .row(0, named=True)
)
answer = (
    httpx.post(f"{endpoint['url']}/predict", json={"rows": [customer]}).raise_for_status().json()
)
mine = answer["predictions"][0]
assert mine["model_version"] == str(champion["version"])
for _ in range(40):
    log = (
        lake.scan(settings.table("_predictions", "churn"))
        .filter(prediction_id=mine["prediction_id"])
        .collect()
    )
    if log.height:
        break
    time.sleep(0.5)
assert log["probability"].to_list() == [mine["probability"]]

looks = [
    json.loads(d)
    for d in events.history(settings.events, "churn", "monitored").collect()["details"]
]
assert looks and all(look["rows"] >= 100 and look["verdict"] for look in looks), looks
logged = lake.scan(settings.table("_predictions", "churn")).filter(stage="production").collect()
assert logged.height >= sum(look["rows"] for look in looks)
assert looks[0]["quiet"] and not looks[-1]["quiet"], [look["verdict"] for look in looks]

columns = {a["column"] for a in status["alerts"]}
assert "monthly_charges" in columns and columns <= {"monthly_charges", "prediction"}, status[
    "alerts"
]

found = json.loads(ask("lineage", "churn@champion", "--format", "json"))
kinds = {n["kind"] for n in found["nodes"]}
assert {
    "endpoint",
    "model",
    "dataset",
    "source file",
    "commit",
    "candidate",
    "report",
    "approved",
} <= kinds, kinds
assert json.loads(ask("lineage", f"prediction:{mine['prediction_id']}", "--format", "json"))[
    "root"
].startswith("prediction:")
assert httpx.get(f"{endpoint['url'].rsplit('/models', 1)[0]}/monitor/churn").status_code == 200

running = cluster.find_cluster(settings)
members = head.session_processes(running.session)
ask("down")
left = [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
assert not left and not Path(running.folder).exists(), left
assert not any(
    c.laddr.port == settings.serve.port and c.status == "LISTEN" for c in psutil.net_connections()
)
print("1 passed, 0 failed")
