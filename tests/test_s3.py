"Storage in a bucket: `[workspace] storage = s3://…`, on a real S3 server."

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from test_workflow import NOTEBOOKS, stage, wait, workflow

from mlops_nb.core import events, lake
from mlops_nb.core.errors import EventConflict, LakeError, WorkflowError
from mlops_nb.core.settings import create
from mlops_nb.flow import lineage, references
from mlops_nb.flow.workflow import Workflow
from mlops_nb.flow.workflow.batch import map as workflow_map
from mlops_nb.flow.workflow.files import file_exists, put, read_file, read_notebook
from mlops_nb.flow.workflow.ledger import Ledger
from mlops_nb.flow.workflow.outputs import read_outputs
from mlops_nb.front import overview


@pytest.fixture
def bucket(ray_cluster, s3, tmp_path):
    "A fresh workspace on the session's cluster that keeps everything in a bucket."
    return create(
        tmp_path / "workspace",
        workspace={"name": tmp_path.name, "storage": f"{s3.address}/team/churn"},
    )


def status(address: str) -> list[str]:
    return [
        c.metadata.papermill.status for c in read_notebook(address).cells if c.cell_type == "code"
    ]


# Files and tables


def test_files_come_back_and_mistakes_are_told_in_a_sentence(s3):
    put(f"{s3.address}/a/b.txt", b"kept")
    assert read_file(f"{s3.address}/a/b.txt") == b"kept" and not file_exists(
        f"{s3.address}/a/c.txt"
    )
    with pytest.raises(FileNotFoundError):
        read_file(f"{s3.address}/a/c.txt")
    with pytest.raises(WorkflowError, match="there is no such notebook"):
        read_notebook(f"{s3.address}/a/c.ipynb")
    with pytest.raises(WorkflowError, match="s3://no-such-bucket/a cannot be written.*bucket"):
        put("s3://no-such-bucket/a", b"")
    with pytest.raises(
        LakeError, match="cannot be reached: The specified bucket does not exist; check"
    ):
        lake.scan("s3://no-such-bucket/lake/t")


def test_many_writers_at_once_lose_nothing_and_double_nothing(s3):
    "Each sends its rows twice, like a writer that was killed before it knew of its commit."
    table = f"{s3.address}/lake/t"

    def write(n: int) -> None:
        for _ in range(2):
            lake.append(table, pl.DataFrame({"n": [n]}), key=(f"writer {n % 4}", n // 4))

    def writer(first: int) -> None:
        for n in range(first, 12, 4):
            write(n)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, range(4)))
    assert (
        sorted(lake.scan(table).collect()["n"]) == list(range(12))
        and lake.table_version(table) == 11
    )
    lake.maintain(table)
    assert (
        lake.scan(table).collect().height == 12
        and lake.scan(table, version=0).collect().height == 1
    )


def test_of_those_who_decide_at_once_one_does(s3):
    log = f"{s3.address}/lake/_events"
    before = events.record(log, "deployed", "churn", by="ada", after=None)

    def decide(n: int) -> bool:
        try:
            return bool(events.record(log, "deployed", "churn", by=f"person {n}", after=before))
        except EventConflict:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(decide, range(4))) == 1
    assert events.history(log).collect().height == 2


# Workflows


@pytest.mark.cluster
def test_a_workflow_keeps_everything_in_the_bucket_and_a_second_run_has_nothing_to_do(
    bucket, s3, tmp_path
):
    stage(
        tmp_path,
        "1_ingest",
        "rows: int",
        "import polars as pl\nfrom mlops_nb.core import lake\n"
        "from mlops_nb.core.settings import load_settings\n"
        "rows_ = pl.DataFrame({'n': range(rows)})\n"
        "address = load_settings().table('numbers')\n"
        "lake.append(address, rows_)\nglue('address', address)\n"
        "glue('frame', rows_)",
    )
    stage(
        tmp_path,
        "2_train",
        "address: str\nframe: str",
        "import mlflow, polars as pl\nfrom mlops_nb.core import lake\n"
        "assert lake.scan(address).collect()['n'].n_unique() == pl.read_parquet(frame).height\n"
        "with mlflow.start_run() as run: mlflow.log_text('weights', 'model/weights.txt')\n"
        "glue('candidate', f'runs:/{run.info.run_id}/model')",
    )
    flow = Workflow.discover(tmp_path)
    again = dict(
        settings=bucket,
        resolve=references.fingerprints(flow, settings=bucket),
        valid=references.validity(bucket),
    )
    run = flow.run({"rows": 3}, **again)
    storage = f"{s3.address}/team/churn"
    assert (
        run.state == "done"
        and run.outputs["frame"] == f"{storage}/runs/{run.id}/1_ingest.frame.parquet"
    )
    for one in run.stages:
        assert one.notebook.startswith(f"{storage}/runs/{run.id}/") and set(
            status(one.notebook)
        ) == {"completed"}
        assert file_exists(one.notebook.replace(".ipynb", ".html"))
    assert read_outputs(run.stages[0].notebook)["frame"].height == 3

    client = Ledger(bucket).client
    kept = client.get_run(run.stages[1].id)
    assert kept.info.artifact_uri.startswith(f"{storage}/artifacts/")
    assert {a.path for a in client.list_artifacts(kept.info.run_id)} == {
        "2_train.ipynb",
        "2_train.html",
        "model",
    }
    assert events.history(bucket.events, f"run:{run.id}").collect()["kind"].to_list() == [
        "run_started",
        "run_finished",
    ]
    assert (
        lineage.trace(f"run:{run.id}", settings=bucket).nodes[f"run:{run.id}"]["facts"]["state"]
        == "done"
    )
    now = overview.state(bucket)
    assert (
        now["workspace"]["storage"] == storage
        and now["run"]["id"] == run.id
        and now["run"]["state"] == "done"
    )
    assert not (bucket.root / "storage").exists() and storage in run._repr_html_()

    assert [s.state for s in flow.run({"rows": 3}, **again).stages] == ["reused", "reused"]
    assert lake.table_version(bucket.table("numbers")) == 0
    import boto3

    things = (
        boto3.resource("s3", region_name="us-east-1")
        .Bucket(s3.address.removeprefix("s3://"))
        .objects
    )
    things.filter(Prefix=f"team/churn/artifacts/{run.stages[1].id}/artifacts/model").delete()
    things.filter(Prefix=f"team/churn/runs/{run.id}/1_ingest.frame").delete()
    mended = flow.run({"rows": 3}, **again)  # what was lost is made again
    assert [s.state for s in mended.stages] == ["done", "done"] and lake.table_version(
        bucket.table("numbers")
    ) == 1


@pytest.mark.cluster
def test_the_notebook_in_the_bucket_is_true_while_it_runs(bucket, tmp_path):
    "It is read all the time, and shows each cell as it ends while the next one runs."
    stage(
        tmp_path,
        "1_slow",
        "",
        "'first cell'",
        "import pathlib, time\nprint('waiting', flush=True)\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.05)",
        "'last cell'",
    )
    seen, runs = [], Ledger(bucket)

    def address() -> str:
        [run] = runs.client.search_runs([runs.experiment], "tags.`mlops_nb.kind` = 'workflow'")
        return f"{bucket.runs}/{run.info.run_id}/1_slow.ipynb"

    def look() -> bool:
        found = status(address()) if file_exists(address()) else []
        if found and found not in seen[-1:]:
            seen.append(found)
        return found == ["completed", "completed", "running", "pending"]

    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            Workflow.discover(tmp_path).run, settings=bucket, on_event=lambda now: begun.set()
        )
        assert begun.wait(60)
        wait(look)
        cells = read_notebook(address()).cells
        assert cells[1].outputs[0].data["text/plain"] == "'first cell'"
        (tmp_path / "go").touch()
        while not running.done():
            look()
        assert running.result().stages[0].notebook == address()
    look()
    assert seen[-1] == ["completed"] * 4


@pytest.mark.cluster
def test_the_notebook_in_the_bucket_tells_which_cell_was_killed(bucket, tmp_path):
    with pytest.raises(
        WorkflowError, match=r"cell 3: DeadKernelError.*The executed notebook is s3://"
    ) as e:
        workflow(tmp_path, _1_killed="killed").run(settings=bucket)
    address = e.value.run.stages[0].notebook
    assert status(address)[-2:] == ["failed", "pending"]
    assert b"the kernel died while it ran this cell" in read_file(
        address.replace(".ipynb", ".html")
    )
    assert (
        events.newest(bucket.events, "run_finished", f"run:{e.value.run.id}")["details"]["state"]
        == "failed"
    )


@pytest.mark.cluster
def test_a_batch_in_the_bucket_repeats_only_what_failed(bucket, tmp_path):
    path = stage(
        tmp_path,
        "square",
        "n: int",
        "import pathlib\n"
        "if n == 1 and not pathlib.Path('go').exists(): raise ValueError(n)\n"
        "import polars as pl\nglue('square', n * n)\nglue('table', pl.DataFrame({'n': [n]}))",
    )
    sets = [{"n": n} for n in range(3)]
    batch = workflow_map(path, sets, settings=bucket)
    assert [s.state for s in batch.stages] == ["done", "failed", "done"]
    assert status(batch.stages[1].notebook)[-1] == "failed"
    (tmp_path / "go").touch()
    again = workflow_map(path, sets, settings=bucket)
    assert [s.state for s in again.stages] == ["reused", "done", "reused"]
    assert [pl.read_parquet(one)["n"].item() for one in again.table["table"]] == [0, 1, 2]


@pytest.mark.cluster
def test_anybody_may_let_papermill_write_to_a_bucket(ray_cluster, s3, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLOPS_NB")} | {
        "RAY_ADDRESS": ray_cluster.address
    }
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "papermill"),
            str(NOTEBOOKS / "raises.ipynb"),
            f"{s3.address}/out.ipynb",
            "--engine",
            "ray",
            "--no-progress-bar",
        ],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr, done.stderr
    assert status(f"{s3.address}/out.ipynb")[-2:] == ["failed", "pending"]
