"""Make `old_workspace.tar.gz`: a small workspace as an earlier version left it.

It is for test_old_workspace.py. Run this script only with the code of that version (commit
c756e1a): `git worktree add OLD c756e1a`, then `python tests/make_old_workspace.py` there, with this
file beside the others. The workspace is the work of real commands: a workflow of six notebooks, a
person's approval, requests over HTTP, labels, two monitoring passes (the second one alarmed), a
second version that was a canary, was rolled back and rejected. Afterwards 140 predictions are left
that no pass has judged, 20 of them in a log that no replica moved. Its cluster is stopped and what
can be made again is taken out: pages, code snapshots, caches, logs.

A workspace remembers its own folder in MLflow's database, in events (where bundles and reports are)
and in executed notebooks. There the archive has `ROOT`, and `unpack` puts the new folder in its
place.
"""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import polars as pl
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

ARCHIVE = Path(__file__).with_name("old_workspace.tar.gz")
ROOT = "/old/workspace"  # stands for the workspace's folder in MLflow's database
GONE = ("*.html", "*.log", "__pycache__", "*.crc", "cluster.json", "libraries", "*.png")

MODEL = '''"The club's model: what the notebooks share."
import polars as pl

from mlops_nb.objective import Objective

OBJECTIVE = Objective(name="club", question="Which members leave?", goal="They get a call.", \
target="left",
                      positive="yes", key="member", metric="roc_auc", \
accept={"roc_auc": 0.6}, protected=("sex",))


def features(members: pl.DataFrame) -> pl.DataFrame:
    "What the model sees of a member."
    return members.with_columns(per_visit=pl.col("fee") / (pl.col("visits") + 1))
'''

IMPORTS = """from club.model import OBJECTIVE
from mlops_nb import datasets, deployment, monitoring, registry, tracking, training
from mlops_nb.workflow import glue
"""

NOTEBOOKS = {
    "1_ingest": (
        "source = 'data/members.csv'",
        """
glue("dataset_version", datasets.ingest("club", source, key="member").ref)""",
    ),
    "2_train": (
        "dataset_version = 'club'\nseed = 0",
        """
from ray import tune
from sklearn.linear_model import LogisticRegression
from mlops_nb.training import Candidate, search
rows = datasets.get(dataset_version).scan("train")
one = Candidate("logistic", LogisticRegression(max_iter=500), {"C": tune.loguniform(1e-2, 1e2)})
found = search(rows, OBJECTIVE, [one], features="club.model.features", trials=2, seed=seed)
glue("candidate", found.best.save())""",
    ),
    "3_test": (
        "dataset_version = 'club'\ncandidate = ''",
        """
import tempfile
from mlops_nb.evaluation import evaluate
fitted = training.load(candidate)
rows = datasets.get(dataset_version).scan("test").collect()
result = evaluate(rows, fitted.probability(rows), OBJECTIVE, pipeline=fitted.pipeline)
with tempfile.TemporaryDirectory() as folder:
    result.save(folder)
    glue("report", tracking.log_folder(folder, "report"))
glue("passed", result.passed)""",
    ),
    "4_register": (
        "dataset_version = 'club'\ncandidate = ''\nreport = ''\npassed = False",
        """
import polars as pl
from mlops_nb.profiles import profile
fitted, data = training.load(candidate), datasets.get(dataset_version)
test = data.scan("test").collect()
inputs = data.scan("train").select(c.name for c in fitted.signature.columns).collect()
known = profile(inputs).merge(profile(pl.DataFrame({"prediction": fitted.probability(test)})))
version = registry.register("club", candidate, report_uri=report, dataset=data.ref, profile=known,
                            objective=OBJECTIVE, by="workflow")
glue("model_version", version.ref)""",
    ),
    "5_deploy": (
        "model_version = ''\ndataset_version = 'club'",
        """
deployment.stage(model_version)
assert deployment.accept(model_version, \
datasets.get(dataset_version).scan("test").head(50).collect()).passed
glue("endpoint", deployment.promote(model_version, by="workflow").model)""",
    ),
}


def members(rows: int, seed: int, *, shift: float = 0.0) -> pl.DataFrame:
    "Members of a club, and whether they left."
    rng = np.random.default_rng(seed)
    visits, fee = rng.poisson(6, rows), rng.normal(40, 8, rows).round(2) + shift
    plan, sex = rng.choice(["day", "evening", "full"], rows), rng.choice(["f", "m"], rows)
    chance = 1 / (1 + np.exp(-(fee - shift - 40) / 5 + (visits - 6) / 1.5))
    left = np.where(rng.random(rows) < chance, "yes", "no")
    return pl.DataFrame(
        {
            "member": [f"{seed}-{i:04}" for i in range(rows)],
            "visits": visits,
            "fee": fee,
            "plan": plan,
            "sex": sex,
            "left": left,
        }
    )


def command(root: Path, *words: str, fails: bool = False) -> str:
    "What `mlops-nb` printed; with `fails`, it must have failed."
    done = subprocess.run(
        [Path(sys.executable).parent / "mlops-nb", *words, "-w", root],
        capture_output=True,
        text=True,
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def prepare(root: Path) -> None:
    "Settings, data, package and notebooks."
    from mlops_nb.settings import create

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    create(root, workspace={"name": "club", "package": "club"}, serve={"port": port})
    (root / "data").mkdir()
    members(600, 0).write_csv(root / "data" / "members.csv")
    (root / "club").mkdir()
    (root / "club" / "__init__.py").write_text("")
    (root / "club" / "model.py").write_text(MODEL)
    (root / "nbs").mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name, (parameters, code) in NOTEBOOKS.items():
        cells = [
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            new_code_cell(IMPORTS + code),
        ]
        write(
            new_notebook(cells=cells, metadata={"kernelspec": kernel}),
            root / "nbs" / f"{name}.ipynb",
        )


def predicted(url: str, rows: pl.DataFrame) -> list[str]:
    "Ids of the predictions of these rows."
    inputs = rows.drop("member", "left").to_dicts()
    answer = (
        httpx.post(f"{url}/predict", json={"rows": inputs}, timeout=60).raise_for_status().json()
    )
    return [p["prediction_id"] for p in answer["predictions"]]


def labelled(url: str, ids: list[str], rows: pl.DataFrame) -> None:
    "Tell what became of them."
    labels = [
        {"prediction_id": i, "label": label} for i, label in zip(ids, rows["left"], strict=True)
    ]
    httpx.post(f"{url}/feedback", json={"labels": labels}, timeout=60).raise_for_status()


def work(root: Path) -> None:
    "Everything that the workspace is to remember."
    refused = " ".join(command(root, "run", fails=True).split())
    assert "has no approval" in refused, refused
    command(root, "approve", "club/1", "--by", "ann", "--note", "looks right")
    command(root, "run")
    url = next(e["url"] for e in json.loads(command(root, "status", "--json"))["endpoints"])
    quiet = members(150, 1)
    labelled(url, predicted(url, quiet), quiet)
    command(root, "monitor", "club")
    shifted = members(150, 2, shift=25)
    labelled(url, predicted(url, shifted)[:40], shifted[:40])
    command(root, "monitor", "club")
    command(root, "run", "-p", "seed=1", fails=True)
    command(root, "approve", "club/2", "--by", "ann")
    command(root, "deploy", "club/2", "--canary", "20", "--by", "ann")
    command(root, "rollback", "club", "--by", "ann", "--note", "not now")
    command(root, "reject", "club/2", "--by", "bob", "--note", "no better")
    predicted(url, members(120, 3, shift=25))


def unmoved(root: Path) -> None:
    "Predictions in a log whose replica is gone."
    from mlops_nb.serving.log import PredictionLog
    from mlops_nb.settings import load

    from mlops_nb import lake

    settings = load(root)
    log = lake.scan(settings.table("_predictions", "club")).filter(
        stage="production", model_version="1"
    )
    now = int(time.time() * 1e6)
    columns = log.tail(20).with_columns(at=pl.lit(now)).collect().to_dict(as_series=False)
    columns["prediction_id"] = [f"unmoved-{i}" for i in range(20)]
    PredictionLog(settings, "club").append(columns)


def pack(root: Path) -> None:
    "Take out what can be made again, and write the archive."
    for pattern in GONE:
        for path in [*root.rglob(pattern)]:
            if {"_delta_log", "wal", "bundles"} & {*path.parts}:
                continue  # complete, or worth nothing
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(
                missing_ok=True
            )
    relocate(root, str(root), ROOT)
    relocate(root, str(Path(__file__).parents[1]), "/old/mlops_nb")
    with sqlite3.connect(root / "storage" / "mlflow.db") as database:
        database.execute("VACUUM")
    with tarfile.open(ARCHIVE, "w:gz", compresslevel=9) as archive:
        for path in sorted(root.rglob("*")):
            archive.add(path, path.relative_to(root), recursive=False)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes")


def unpack(folder: Path) -> Path:
    "The workspace, in a folder of its own."
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    relocate(folder, ROOT, str(folder))
    return folder


def relocate(folder: Path, old: str, new: str) -> None:
    "Replace an address by another wherever a workspace keeps its own."
    for path in folder.rglob("*.ipynb"):
        path.write_text(path.read_text().replace(old, new))
    for commit in (folder / "storage" / "lake" / "_events" / "_delta_log").glob("*.json"):
        _events(commit, old, new)
    with sqlite3.connect(folder / "storage" / "mlflow.db") as database:
        _database(database, old, new)


def _events(commit: Path, old: str, new: str) -> None:
    "In the files of a commit to the log of events; the commit has their sizes."
    lines = [json.loads(line) for line in commit.read_text().splitlines()]
    for added in [line["add"] for line in lines if "add" in line]:
        file = commit.parents[1] / added["path"]
        rows = pl.read_parquet(file)
        rows.with_columns(pl.col("details").str.replace_all(old, new, literal=True)).write_parquet(
            file
        )
        added["size"] = file.stat().st_size
        added.pop("stats", None)
    commit.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _database(database: sqlite3.Connection, old: str, new: str) -> None:
    "In every text of MLflow's database."
    tables = [
        name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    for table in tables:
        for _, column, kind, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
            if "CHAR" not in kind.upper() and "TEXT" not in kind.upper():
                continue
            database.execute(
                f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) '
                f'WHERE instr("{column}", ?)',
                (old, new, old),
            )


def main() -> None:
    os.environ.update(WHYLOGS_NO_ANALYTICS="True", MLFLOW_DISABLE_TELEMETRY="true")
    root = Path(tempfile.mkdtemp(prefix="old-workspace-")).resolve()
    try:
        prepare(root)
        try:
            work(root)
        finally:
            command(root, "down")
        unmoved(root)
        pack(root)
    finally:
        if "--keep" in sys.argv:
            print(root)
        else:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
