"A command that the fork server gives behaves like the client's own process, and ends with it."

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from mlops_nb.core import forkserver
from mlops_nb.core.forkclient import ForkedProcess, is_listening
from mlops_nb.front import launcher

SERVE = "import runpy, sys; runpy.run_path(sys.argv[1])['serve_forks'](sys.argv[2], ())"
PROGRAM = '''
import os, subprocess, sys, time
def tell():
    mask = os.umask(0)
    print(os.getcwd(), sys.argv[1:], os.environ["WHO"], oct(mask), sys.stdin.read())
    sys.exit(7)
def stop(): sys.exit("it cannot go on")
def wrong(): 1 / 0
def hang():
    child = subprocess.Popen(["sleep", "600"])
    try:
        print(os.getpid(), child.pid, flush=True)
        time.sleep(600)
    except KeyboardInterrupt: child.kill(); print("interrupted"); sys.exit(130)
def work():
    print(os.getpid(), flush=True)
    time.sleep(1)
    print("finished")
'''


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


@pytest.fixture
def server(tmp_path):
    "A fork server without imports, at the address that a head in this folder would have."
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / ".mlops_nb").mkdir()
    (tmp_path / ".mlops_nb" / "cluster.json").write_text(json.dumps({"folder": str(tmp_path)}))
    address = str(tmp_path / "forks")
    process = subprocess.Popen([sys.executable, "-P", "-c", SERVE, forkserver.__file__, address])
    until(lambda: is_listening(address))
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def ask(server, tmp_path):
    "Ask as the console script does, from a process of its own; `call` is a function of PROGRAM."
    asker = (
        "import sys; from mlops_nb.front import launcher; real = launcher.ForkedProcess\n"
        "call, library = sys.argv[1:3]; del sys.argv[1:3]\n"
        "ours = {'call': f'program:{call}', 'library': library}\n"
        "launcher.ForkedProcess = lambda where, request, *fds: real(where, request | ours, *fds)\n"
        "launcher.main()"
    )

    def start(call, *arguments, **options):
        command = [sys.executable, "-c", asker, call, str(tmp_path), *arguments]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"WHO": "ada"},
            **options,
        )

    return start


def test_a_command_is_the_askers_process(ask, tmp_path):
    process = ask("tell", "a", "b c", stdin=subprocess.PIPE, umask=0o027)
    said, errors = process.communicate("from the asker", timeout=60)
    assert (said, process.returncode) == (
        f"{tmp_path} ['a', 'b c'] ada 0o27 from the asker\n",
        7,
    ), errors


@pytest.mark.parametrize(
    ("call", "says"), [("stop", "it cannot go on\n"), ("wrong", "ZeroDivisionError")]
)
def test_how_a_command_ends(ask, call, says):
    process = ask(call)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and said == "" and says in errors


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_dies_with_its_asker_and_takes_its_children_along(ask):
    process = ask("hang")
    pids = [int(p) for p in process.stdout.readline().split()]
    assert process.pid not in pids and not any(map(gone, pids))
    process.kill()
    process.wait()
    until(lambda: all(map(gone, pids)))


def test_a_command_is_ended_as_its_asker_is(ask):
    process = ask("work")
    pid = int(process.stdout.readline())
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    until(lambda: gone(pid))


def test_an_interrupt_reaches_the_command(ask):
    process = ask("hang")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert said == "interrupted\n" and process.returncode == 130


def test_what_the_asker_ignores_is_not_passed_on(ask):
    process = ask(
        "work", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )  # as nohup does
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=60)
    assert said == "finished\n" and process.returncode == 0


def test_a_command_outlives_the_server(ask, server):
    process = ask("work")
    process.stdout.readline()
    server.kill()
    server.wait()
    said, _ = process.communicate(timeout=60)
    assert said == "finished\n" and process.returncode == 0


def test_a_kernel_is_made_ahead_and_leaves_nothing(server, tmp_path):
    "Also if the one that waits is killed."
    waiting = lambda: [
        int(p.suffix[1:]) for p in tmp_path.glob("forks.*") if (p / "ready").exists()
    ]
    [first] = until(waiting)
    os.kill(first, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(first))
    kernel = ForkedProcess(str(tmp_path / "forks"), {"env": {**os.environ}, "cwd": "/"})
    until(lambda: kernel.pid in waiting())
    assert kernel.pid != first and kernel.poll() is None
    [spare] = until(lambda: set(waiting()) - {first, kernel.pid})
    kernel.kill()
    until(lambda: gone(kernel.pid))
    assert until(lambda: {*tmp_path.glob("forks.*")} == {tmp_path / f"forks.{spare}"})
    server.kill()
    server.wait()
    until(lambda: gone(spare))


@pytest.mark.parametrize("victim", ["server", "parent"])
def test_a_private_folder_goes_with_its_server(tmp_path, victim):
    "Though the server is killed, and though a fork of it lives on."
    (tmp_path / "program.py").write_text(PROGRAM)
    folder = tmp_path / "private"
    folder.mkdir()
    address = str(folder / "forks")
    start = (
        "import subprocess, sys; process = subprocess.Popen(sys.argv[1:])\n"
        "print(process.pid, flush=True)\n"
        "process.wait(); sys.stdin.read()"
    )
    serve = [
        sys.executable,
        "-P",
        "-c",
        SERVE.replace("())", "(), private=True)"),
        forkserver.__file__,
        address,
    ]
    parent = subprocess.Popen(
        [sys.executable, "-c", start, *serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    server = int(parent.stdout.readline())
    until(lambda: is_listening(address))
    with open(os.devnull, "r+") as null:
        fork = ForkedProcess(
            address,
            {
                "call": "program:hang",
                "argv": [],
                "env": {},
                "cwd": "/",
                "library": str(tmp_path),
                "umask": 0o22,
            },
            *[null.fileno()] * 3,
        )
    assert folder.exists()
    os.kill({"server": server, "parent": parent.pid}[victim], signal.SIGKILL)
    until(lambda: not folder.exists())
    assert not gone(fork.pid)
    fork.kill()
    until(lambda: gone(fork.pid) and gone(server))
    parent.kill()
    parent.communicate()


def test_no_server_no_fork(tmp_path):
    assert not is_listening(str(tmp_path / "forks"))
    with pytest.raises(OSError):
        ForkedProcess(str(tmp_path / "forks"), {})


def test_after_an_installation_there_are_no_mixtures(tmp_path):
    "The server refuses while something it imported may be old, and starts anew."
    address, packages = str(tmp_path / "forks"), tmp_path / "packages"
    packages.mkdir()
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from mlops_nb.core import forkserver\n"
        "forkserver.installation_time = lambda: os.stat(sys.argv[3]).st_mtime_ns\n"
        "open(sys.argv[4], 'a').write('started\\n'); forkserver.serve_forks(sys.argv[2], ())"
    )
    root, log = str(Path(forkserver.__file__).parents[2]), tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", code, root, address, packages, log])
    try:
        until(lambda: is_listening(address))
        ask = {
            "call": "os:getpid",
            "argv": [],
            "env": {},
            "cwd": "/",
            "library": root,
            "umask": 0o22,
        }
        assert ForkedProcess(address, ask, 0, 1, 2).status() == 0
        (packages / "new").mkdir()
        with pytest.raises((OSError, ValueError)):
            ForkedProcess(address, ask, 0, 1, 2)
        until(lambda: log.read_text() == "started\n" * 2)

        def again():
            try:
                return ForkedProcess(address, ask, 0, 1, 2).status() == 0
            except (OSError, ValueError):
                return False

        until(again)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_the_nearest_record_is_found(monkeypatch):
    "In a folder beside pytest's own, in which the session's cluster has its record."
    monkeypatch.delenv("MLOPS_NB_WORKSPACE", raising=False)
    with tempfile.TemporaryDirectory(prefix="mlops_nb-") as folder:
        work = Path(folder) / "w"
        record = work / ".mlops_nb" / "cluster.json"
        record.parent.mkdir(parents=True)
        record.write_text('{"folder": "/tmp/x"}')
        (work / "nbs").mkdir()
        with contextlib.chdir(work / "nbs"):
            assert launcher.server(["status"]) == "/tmp/x/forks"
        record.write_text("{")
        assert launcher.server(["status", "-w", str(work)]) is None
