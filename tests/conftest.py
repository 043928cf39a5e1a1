"One Ray cluster a process; a fresh workspace a test."

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest

os.environ.update(
    WHYLOGS_NO_ANALYTICS="True", MLFLOW_DISABLE_TELEMETRY="true", RAY_USAGE_STATS_ENABLED="0"
)

from mlops_nb.core import cluster  # noqa: E402
from mlops_nb.core.settings import create  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--full-chaos", action="store_true", help="random-kill tests in full, not three rounds each"
    )


def pytest_generate_tests(metafunc):
    "A random-kill test takes `round_`: three rounds, or in full twenty."
    if "round_" in metafunc.fixturenames:
        metafunc.parametrize(
            "round_", range(20 if metafunc.config.getoption("--full-chaos") else 3)
        )


# Groups of tests that take minutes. They begin first, so that no process waits for one at the end.
LONG = (
    "test_reference_workflows on Ray",
    "test_notebooks",
    "test_workflow on Ray",
    "test_churn on Ray",
    "lessons",
    "test_search on Ray",
    "test_deployment on Ray",
    "test_lab",
    "test_cli on Ray",
    "test_triggers on Ray",
)


def pytest_configure(config):
    "Groups are taken in the order of the tests, not by how many tests they have."
    config.option.loadscopereorder = False


def pytest_itemcollected(item):
    "With `--dist loadgroup`: tests by module; those that need Ray apart from the others."
    if not item.get_closest_marker("xdist_group"):
        place = " on Ray" if "ray_cluster" in item.fixturenames else ""
        item.add_marker(pytest.mark.xdist_group(item.module.__name__ + place))


def _turn(item) -> int:
    "The place of a test's group among the long ones; all others come after them."
    (group,) = item.get_closest_marker("xdist_group").args
    return LONG.index(group) if group in LONG else len(LONG)


def pytest_collection_modifyitems(items):
    items.sort(key=_turn)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    "The Ray head of this process; workspaces made while it runs join it, also those of children."
    home = create(tmp_path_factory.mktemp("cluster"), serve={"port": free_port()})
    mark = os.environ.pop(
        "PYTEST_CURRENT_TEST", None
    )  # ipykernel captures no output of children where it is set
    try:
        running = cluster.up(home)
    finally:
        if mark:
            os.environ["PYTEST_CURRENT_TEST"] = mark
    given = running.env | {
        "MLOPS_NB__CLUSTER__ADDRESS": running.address,
        "MLOPS_NB__SERVE__PORT": str(home.serve.port),
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    nearest = (
        tmp_path_factory.getbasetemp() / ".mlops_nb" / "cluster.json"
    )  # commands below are forks of this head's
    nearest.parent.mkdir()
    nearest.symlink_to(home.state / "cluster.json")
    yield running
    cluster.down(home)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def alone(request, monkeypatch):
    "A test that does not ask for the cluster does not see it either."
    if "ray_cluster" in request.fixturenames:
        return
    for name in ("MLOPS_NB__CLUSTER__ADDRESS", "MLOPS_NB__SERVE__PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def workspace(ray_cluster, tmp_path):
    "A fresh workspace on the session's cluster."
    return create(tmp_path / "workspace", workspace={"name": tmp_path.name})


SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
sys.stdin.read()  # until who asked for it has ended, however that ended
server.stop()
"""


@pytest.fixture(scope="session")
def s3_endpoint():
    "An S3 server, in its own process: while deltalake waits, no other thread of its process runs."
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield server.stdout.readline().strip()
    server.stdin.close()
    server.wait(30)


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    "A fresh bucket: its `address`, the server's `endpoint`, and the variables set as `env`."
    env = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid4().hex[:12]}"
    httpx.put(f"{s3_endpoint}/{bucket}").raise_for_status()
    return SimpleNamespace(address=f"s3://{bucket}", endpoint=s3_endpoint, env=env)


def _postgres_programs() -> Path | None:
    "The folder of initdb and pg_ctl: on the path, or where Debian puts them."
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres():
    "The address of a PostgreSQL server on loopback, with the password 'open sesame@1'."
    programs = _postgres_programs()
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = (
        {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    )  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="mlops_nb-postgres-"))
    data, port = folder / "data", free_port()

    def run(program: str, *arguments: str):
        done = subprocess.run(
            [programs / program, "-D", data, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **user,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}")

    try:
        (folder / "password").write_text("open sesame@1")
        if user:
            shutil.chown(folder, **user)
        (folder / "password").chmod(0o644)
        run(
            "initdb",
            "-U",
            "tester",
            f"--pwfile={folder / 'password'}",
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--no-sync",
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
        options += f" -c unix_socket_directories={folder}"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://tester:open%20sesame%401@127.0.0.1:{port}/postgres"
    finally:
        with contextlib.suppress(RuntimeError):
            run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def aliases(settings, model: str) -> dict[str, str]:
    "Return the version of each of a model's aliases in MLflow."
    from mlops_nb.core import tracking

    registered = tracking.mlflow_client(settings).get_registered_model(model)
    return {alias: str(version) for alias, version in registered.aliases.items()}


def panic(*args, **kwargs):
    "Raise what Python gets from a Rust library that panics."
    import polars as pl

    raise pl.exceptions.PanicException("index out of bounds")


@pytest.fixture
def chromium():
    "The path of a real browser."
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not found:
        pytest.skip("chromium is not installed: apt-get install chromium")
    return found


@pytest.fixture
def listening():
    "A function that puts an ASGI application under a real server, as a context; it gives the port."
    import uvicorn

    @contextlib.contextmanager
    def serving(app):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
            thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
            thread.start()
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            try:
                yield taken.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join(10)

    return serving
