"""`mlops-nb init` as a flow: what it refuses, asks, writes, leaves behind; what an update keeps.

The look at the table, the decisions and the files are small stand-ins here.
"""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import starter_stand_ins
from starter_stand_ins import KILL, POINTS, RELEASE, SIGNAL

from mlops_nb.front import starter
from mlops_nb.front.cli import run_cli
from mlops_nb.front.starter import decisions, tables, workspace
from mlops_nb.front.starter.material import data_digest, find_material, require_same_copy
from mlops_nb.front.starter.plan import Choices, InitError, WorkspacePlan

PROCESS = [sys.executable, str(Path(starter_stand_ins.__file__))]
ORDERS = "id,amount,late day,churned\n1,2,a,yes\n2,3,b,no\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A folder with a table, which is the current one; the command has the stand-ins."
    monkeypatch.setattr(tables, "look", starter_stand_ins.look)
    monkeypatch.setattr(decisions, "decide_about", starter_stand_ins.decide)
    monkeypatch.setattr(workspace, "write_workspace", starter_stand_ins.write_workspace)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders.csv").write_text(ORDERS)
    return tmp_path


@pytest.fixture
def command(home, monkeypatch, capsys):
    "A function that runs `mlops-nb` in this process, and returns its status and what it printed."

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mlops-nb", *map(str, words)])
        try:
            code = run_cli() or 0
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=" ".join(err.split()))

    return run


def process(*words, home: Path, **env) -> subprocess.CompletedProcess:
    "Run the command with the stand-ins in a process of its own."
    return subprocess.run(
        [*PROCESS, *map(str, words)],
        cwd=home,
        env=os.environ | env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def git(folder: Path, *words: str) -> str:
    "Return what git prints in a folder."
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr


def left_in(home: Path) -> set[str]:
    "Return the names in a folder, hidden ones too."
    return {path.name for path in home.iterdir()}


NEW = ("init", "shop", "--source", "orders.csv", "--yes")


def test_a_workspace_is_whole(home, command):
    done = command(*NEW)
    assert done.code == 0, done.err
    assert left_in(home) == {"orders.csv", "shop"}
    assert "cd shop" in done.out and "mlops-nb run" in done.out and "mlops-nb simulate" in done.out
    assert "late day" in done.out and "[the] only warning" in done.err  # and no markup is lost
    shop = home / "shop"
    assert (shop / "shop" / "train.py").is_file() and (shop / "data" / "orders.csv").is_file()
    assert git(shop, "status", "--porcelain") == ""
    assert git(shop, "log", "--format=%s").splitlines() == ["The workspace as init wrote it"]
    plan = WorkspacePlan.model_validate_json((shop / "init.json").read_bytes())
    assert (plan.name, plan.package, plan.source) == ("shop", "shop", "data/orders.csv")
    assert plan.copied == {"data/orders.csv": str(home / "orders.csv")}
    assert plan.choices.ignore == ("late day",) and plan.given.ignore == ()
    assert stat_mode(shop) == stat_mode(home / "shop" / "nbs")
    assert not [p for p in shop.rglob("*") if p.is_file() and b".init-" in p.read_bytes()]


def stat_mode(path: Path) -> int:
    "Return the permissions of a path."
    return path.stat().st_mode & 0o777


def test_a_workspace_takes_the_place_of_an_empty_folder(home, command, monkeypatch):
    (home / "a shop").mkdir()
    monkeypatch.chdir(home / "a shop")
    done = command("init", ".", "--source", "../orders.csv", "--yes")
    assert done.code == 0, done.err
    assert f"cd {shlex.quote(str(home / 'a shop'))}" in done.out
    plan = WorkspacePlan.model_validate_json((home / "a shop" / "init.json").read_bytes())
    assert (plan.name, plan.package) == ("a-shop", "a_shop")


def test_open_questions_end_with_the_flags_that_answer_them(home, command):
    done = command(*NEW[:-1])
    assert done.code == 2
    assert "Is late day known?" in done.err
    assert "--ignore 'late day'" in done.err and "--keep 'late day'" in done.err
    assert left_in(home) == {"orders.csv"}
    done = command(*NEW[:-1], "--keep", "late day")
    assert done.code == 0, done.err


def test_a_program_gets_questions_and_refusals_as_json(home, command):
    done = command(*NEW[:-1], "--json")
    facts = json.loads(done.out)
    assert done.code == 2 and facts["state"] == "undecided"
    assert facts["questions"][0]["answers"][0]["flag"] == "--ignore 'late day'"
    done = command(*NEW, "--target", "price", "--json")
    assert done.code == 2 and json.loads(done.out) == {
        "state": "refused",
        "error": "there is no column 'price'",
    }
    facts = json.loads(command(*NEW, "--json").out)
    assert facts["state"] == "new" and facts["next"][0] == "cd shop"
    assert facts["plan"]["roles"]["target"] == "churned"


@pytest.mark.parametrize("more, questions", [((), 1), (("--yes",), 0)])
def test_a_dry_run_writes_nothing(home, command, more, questions):
    done = command(*NEW[:-1], *more, "--dry-run", "--json")
    assert done.code == 0 and len(json.loads(done.out)["questions"]) == questions
    done = command(*NEW[:-1], *more, "--dry-run")
    assert done.code == 0 and "nothing was written" in done.out
    assert ("undecided: Is late day known?" in done.out) == bool(questions)
    assert left_in(home) == {"orders.csv"}


def at_terminal(words: list[str], home: Path, *keys: str) -> tuple[int, str]:
    "Run the command in a terminal, and type. Return its status and what it printed."
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execv(PROCESS[0], [*PROCESS, *words])
    text, unsent = "", list(keys)
    while select.select([terminal], [], [], 60)[0]:
        try:
            text += os.read(terminal, 4096).decode()
        except OSError:  # it has ended
            break
        if unsent and text.count("Which [1]:") > len(keys) - len(unsent):
            os.write(terminal, unsent.pop(0).encode())
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


@pytest.mark.parametrize("keys, ignored", [("\n", ("late day",)), ("2\n", ())])
def test_a_person_answers_at_a_terminal(home, keys, ignored):
    code, text = at_terminal(list(NEW[:-1]), home, keys)
    assert code == 0, text
    assert text.index("amount") < text.index("Is late day known?") < text.index("Which [1]:")
    plan = WorkspacePlan.model_validate_json((home / "shop" / "init.json").read_bytes())
    assert plan.choices.ignore == ignored
    again = process(*NEW[:-1], home=home)
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_a_person_who_stops_leaves_nothing(home):
    code, text = at_terminal(list(NEW[:-1]), home, "\x03")
    assert code not in (0, 2) and "Traceback" not in text
    assert left_in(home) == {"orders.csv"}


def taken_port() -> tuple[socket.socket, int]:
    "Return a socket that listens below Ray's ports, and its port."
    for port in range(8200, 9900):
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        listener.listen()
        return listener, port
    raise AssertionError("no port is free")


REFUSED = {
    "a file": (("init", "orders.csv", "--source", "orders.csv"), "is a file"),
    "not empty": (("init", "full", "--source", "orders.csv"), "is not empty"),
    "no parent": (("init", "a/b", "--source", "orders.csv"), "mkdir -p"),
    "no source": (("init", "shop", "--source", "order.csv"), "did you mean"),
    "number": (("init", "2024", "--source", "orders.csv"), "--name"),
    "keyword": (("init", "class", "--source", "orders.csv"), "--name"),
    "python": (("init", "json", "--source", "orders.csv"), "--name"),
    "installed": (("init", "polars", "--source", "orders.csv"), "taken by an installed module"),
    "folder": (("init", "data", "--source", "orders.csv"), "taken by a folder"),
    "ours": (("init", "mlops-nb", "--source", "orders.csv"), "--name"),
    "name": ((*NEW, "--name", "a/b"), "--name"),
    "no name": ((*NEW, "--name", ""), "--name"),
    "port 0": ((*NEW, "--port", "0"), "from 1 to 65535"),
    "port": ((*NEW, "--port", "65536"), "from 1 to 65535"),
    "ray": ((*NEW, "--port", "10500"), "Ray uses"),
    "no column": ((*NEW, "--target", "price"), "no column 'price'"),
    "no table": (("init", "shop"), "--source"),
    "task": ((*NEW, "--task", "clustering"), "--task"),
    "no update": (("init", "full", "--update"), "made"),
    "update what is not there": (("init", "nothing", "--update"), "made"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, home, command):
    words, reason = REFUSED[name]
    (home / "full").mkdir()
    (home / "full" / "thesis.tex").touch()
    done = command(*words)
    assert done.code == 2 and reason in done.err and "defect" not in done.err, done.err
    assert left_in(home) == {"orders.csv", "full"} and left_in(home / "full") == {"thesis.tex"}


def test_a_port_that_is_taken_is_refused(home, command):
    listener, port = taken_port()
    with listener:
        done = command(*NEW, "--port", port)
        assert done.code == 2 and "not free" in done.err
    assert left_in(home) == {"orders.csv"}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(home, command):
    (home / "locked").mkdir(mode=0o500)
    done = command("init", "locked/shop", "--source", "orders.csv", "--yes")
    assert done.code == 2 and "not writable" in done.err


@pytest.mark.parametrize(
    "address", ["postgresql://ann:hunter2@db/shop#table=o", "https://x.org/o.csv?token=hunter2"]
)
def test_a_password_is_refused_and_not_repeated(address, home, command):
    for more in ((), ("--json",)):
        done = command("init", "shop", "--source", address, *more)
        assert done.code == 2 and "$PASSWORD" in done.out + done.err
        assert "hunter2" not in done.out + done.err


def test_two_workspaces_beside_each_other_have_two_ports(home, command):
    ports = []
    for name in ("shop", "bakery"):
        facts = json.loads(command("init", name, *NEW[2:], "--json").out)
        ports.append(facts["plan"]["port"])
    assert 8000 <= ports[0] < ports[1] < 10_000


def test_the_same_command_has_nothing_to_do(home, command):
    assert command(*NEW).code == 0
    before = git(home / "shop", "log") + str((home / "shop").stat().st_mtime_ns)
    for words in (NEW, ("init", "shop/", "--source", str(home / "orders.csv"), "--yes")):
        done = command(*words)
        assert done.code == 0 and "nothing to do" in done.out, done.err
    explicit = command(*NEW[:-1], "--ignore", "late day")  # what was decided the first time
    assert explicit.code == 0 and "nothing to do" in explicit.out
    assert git(home / "shop", "log") + str((home / "shop").stat().st_mtime_ns) == before


def test_another_command_or_other_data_is_refused(home, command):
    assert command(*NEW).code == 0
    done = command(*NEW, "--target", "amount")
    assert done.code == 2 and "--target is amount, and was not given" in done.err
    assert "--update" in done.err
    with (home / "orders.csv").open("a") as file:
        file.write("3,4,c,no\n")
    done = command(*NEW)
    assert done.code == 2 and "the data of orders.csv is not that of" in done.err
    assert (home / "shop" / "data" / "orders.csv").read_text() == ORDERS


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_midway_there_is_no_workspace(point, number, home):
    done = process(*NEW, home=home, **{KILL: point, SIGNAL: str(int(number))})
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "shop" not in left_in(home)
    if number == signal.SIGINT:
        assert left_in(home) == {"orders.csv"}
    elif point != "look":
        assert any(name.startswith(".shop.init-") for name in left_in(home))


def test_the_next_init_removes_what_a_killed_one_left(home, command):
    assert process(*NEW, home=home, **{KILL: "move_into_place"}).returncode == -signal.SIGKILL
    other = home / ".bakery.init-x"
    other.mkdir()
    assert command(*NEW).code == 0
    assert left_in(home) == {"orders.csv", "shop", ".bakery.init-x"}


def test_killed_at_any_time_there_is_no_workspace_or_a_whole_one(home, round_):
    started = subprocess.Popen([*PROCESS, *NEW], cwd=home, stdout=subprocess.DEVNULL)
    time.sleep(0.5 + round_ * 0.37)
    started.kill()
    started.wait()
    if (home / "shop").exists():
        assert git(home / "shop", "status", "--porcelain") == ""
        assert "nothing to do" in process(*NEW, home=home).stdout
    else:
        assert process(*NEW, home=home).returncode == 0


def test_of_two_at_the_same_time_one_makes_the_workspace(home):
    both = [subprocess.Popen([*PROCESS, *NEW], cwd=home, stderr=subprocess.PIPE) for _ in "ab"]
    errors = [process.communicate(timeout=120)[1].decode() for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2]), errors
    assert left_in(home) == {"orders.csv", "shop"}
    assert git(home / "shop", "status", "--porcelain") == ""


def test_git_without_an_identity(home, command, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for name in ("GIT_AUTHOR_EMAIL", "GIT_AUTHOR_NAME", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    done = command(*NEW)
    assert done.code == 0 and "git knows no name and address of yours" in done.err
    assert "@localhost" in git(home / "shop", "log", "--format=%ae")


def test_git_with_the_identity_of_the_person(home, command, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    for number, (key, value) in enumerate({"name": "Ann", "email": "ann@shop.org"}.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", f"user.{key}")
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    assert command(*NEW).code == 0
    assert git(home / "shop", "log", "--format=%an %ae").strip() == "Ann ann@shop.org"


def test_without_git(home, command, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    done = command(*NEW)
    assert done.code == 0 and "There is no git here" in done.err
    assert not (home / "shop" / ".git").exists()
    done = command("init", "bakery", *NEW[2:], "--no-git")
    assert done.code == 0 and "git" not in done.err


def test_inside_a_repository_no_other_is_made(home, command):
    git(home, "init", "--quiet")
    done = command(*NEW)
    assert done.code == 0 and "inside the repository" in done.err
    assert not (home / "shop" / ".git").exists()


def test_a_repository_of_the_environment_is_not_ours(home, command, monkeypatch):
    "A command that a hook of another repository runs has its variables."
    git(home, "init", "--quiet", "other")
    monkeypatch.setenv("GIT_DIR", str(home / "other" / ".git"))
    assert command(*NEW).code == 0
    monkeypatch.delenv("GIT_DIR")
    assert git(home / "shop", "status", "--porcelain") == ""


def edit(shop: Path, file: str, old: str, new: str) -> None:
    "Edit a file of a workspace."
    text = (shop / file).read_text()
    assert old in text
    (shop / file).write_text(text.replace(old, new))


def test_an_update_replaces_what_nobody_edited(home, command, monkeypatch):
    assert command(*NEW).code == 0
    shop = home / "shop"
    (shop / "storage").mkdir()
    (shop / "storage" / "table").write_text("rows")
    (shop / "data" / "orders.csv").write_text(ORDERS + "3,4,c,no\n")
    monkeypatch.setenv(RELEASE, "2")
    done = command("init", "shop", "--update", "--dry-run")
    assert done.code == 0 and "nbs/2_train.ipynb, cell 1" in done.out
    assert (
        "conflict" not in done.out and git(shop, "status", "--porcelain") == " M data/orders.csv\n"
    )
    done = command("init", "shop", "--update", "--json")
    assert done.code == 0 and json.loads(done.out)["state"] == "updated"
    train = (shop / "nbs" / "2_train.ipynb").read_text()
    assert "release 2" in train and "release 1" not in train and "rows + 2" in train
    assert (shop / "only-2.txt").is_file() and not (shop / "only-1.txt").exists()
    assert (shop / "storage" / "table").read_text() == "rows"
    assert (shop / "data" / "orders.csv").read_text() == ORDERS + "3,4,c,no\n"
    done = command("init", "shop", "--update")
    assert done.code == 0 and "nothing to do" in done.out
    assert left_in(home) == {"orders.csv", "shop"}


def test_an_update_keeps_what_a_person_edited(home, command, monkeypatch):
    assert command(*NEW).code == 0
    shop = home / "shop"
    edit(shop, "nbs/2_train.ipynb", "# train, release 1", "# My training")
    edit(shop, "nbs/2_train.ipynb", "IGNORE = ", "MINE = ")
    notebook = json.loads((shop / "nbs" / "1_ingest.ipynb").read_text())
    mine = notebook["cells"][0] | {"id": "mine", "source": ["A note"]}
    last = notebook["cells"].pop()
    notebook["cells"].insert(1, mine)
    notebook["cells"][3]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["x"]}]
    (shop / "nbs" / "1_ingest.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setenv(RELEASE, "2")
    done = command("init", "shop", "--update")
    assert done.code == 0, done.err
    assert re.findall("^conflict: (.*?):", done.out, re.M) == [
        "nbs/2_train.ipynb, cell 1 (# My training)"
    ]
    train = (shop / "nbs" / "2_train.ipynb").read_text()
    assert "# My training" in train and "release" not in train and "MINE = " in train
    assert "MINE = " in (shop / "shop" / "train.py").read_text()
    cells = json.loads((shop / "nbs" / "1_ingest.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    assert texts[:2] == ["# ingest, release 2", "A note"] and texts[-1] == "rows + 2"
    assert "".join(last["source"]) not in texts
    assert cells[3]["outputs"]
    assert "nothing to do" in command("init", "shop", "--update").out


def test_an_update_with_other_choices(home, command):
    assert command(*NEW).code == 0
    edit(home / "shop", "nbs/1_ingest.ipynb", "# ingest", "# My ingest")
    done = command("init", "shop", "--update", "--keep", "late day")
    assert done.code == 0 and "conflict" not in done.out, done.err
    assert "IGNORE = []" in (home / "shop" / "shop" / "train.py").read_text()
    plan = WorkspacePlan.model_validate_json((home / "shop" / "init.json").read_bytes())
    assert plan.choices == Choices(source="orders.csv", keep=("late day",))
    assert plan.source == "data/orders.csv" and plan.copied
    same = command(*NEW, "--keep", "late day")
    assert same.code == 0 and "nothing to do" in same.out
    for flag in (("--name", "bakery"), ("--port", "9999")):
        done = command("init", "shop", "--update", *flag)
        assert done.code == 2 and "cannot be updated" in done.err


def test_an_update_to_another_table(home, command):
    assert command(*NEW).code == 0
    (home / "new.csv").write_text(ORDERS.replace("churned", "left"))
    done = command("init", "shop", "--update", "--source", "new.csv")
    assert done.code == 0, done.err
    shop = home / "shop"
    assert left_in(shop / "data") == {"orders.csv", "new.csv"}
    assert "data/new.csv" in (shop / "shop" / "ingest.py").read_text()
    assert "nothing to do" in command("init", "shop", "--source", "new.csv").out
    (home / "other").mkdir()
    (home / "other" / "new.csv").write_text(ORDERS)
    before = git(shop, "status", "--porcelain")
    done = command("init", "shop", "--update", "--source", "other/new.csv")
    assert done.code == 2 and "has other contents" in done.err
    assert git(shop, "status", "--porcelain") == before


def test_an_update_that_cannot_be_exported_changes_nothing(home, command, monkeypatch):
    assert command(*NEW).code == 0
    shop = home / "shop"
    edit(shop, "nbs/2_train.ipynb", "IGNORE = ", "IGNORE = = ")
    before = {p: p.read_bytes() for p in shop.rglob("*") if p.is_file()}
    monkeypatch.setenv(RELEASE, "2")
    done = command("init", "shop", "--update")
    if done.code == 0:  # nbdev exports it, and the check says what is wrong
        assert "It cannot run yet" in done.err
    else:
        assert {p: p.read_bytes() for p in shop.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("file", ["init.json", "init.base.json", "nbs/2_train.ipynb"])
def test_a_record_that_is_broken_is_said(file, home, command):
    assert command(*NEW).code == 0
    (home / "shop" / file).write_text("{")
    done = command("init", "shop", "--update")
    assert done.code == 2 and Path(file).name in done.err
    assert (home / "shop" / file).read_text() == "{"


def test_an_update_in_a_clone_that_is_elsewhere(home, command, monkeypatch):
    assert command(*NEW).code == 0
    git(home, "clone", "--quiet", "shop", "clone")
    (home / "orders.csv").unlink()
    shutil.rmtree(home / "shop")
    monkeypatch.setenv(RELEASE, "2")
    done = command("init", "clone", "--update")
    assert done.code == 0 and "release 2" in (home / "clone" / "README.md").read_text()


def test_an_update_that_was_killed_is_completed(home, command, monkeypatch):
    assert command(*NEW).code == 0
    shop = home / "shop"
    edit(shop, "nbs/2_train.ipynb", "# train, release 1", "# My training")
    monkeypatch.setenv(RELEASE, "2")
    replaced = Path.replace
    done = 0

    def replace(path, target):
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return replaced(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        command("init", "shop", "--update")
    assert command("init", "shop", "--update").code == 0
    train = (shop / "nbs" / "2_train.ipynb").read_text()
    assert "# My training" in train and "rows + 2" in train
    assert "release 2" in (shop / "README.md").read_text()
    assert "nothing to do" in command("init", "shop", "--update").out


def test_several_files_are_copied_with_their_folders(tmp_path):
    root = tmp_path / "exports"
    for name in ("2024/a.csv", "2025/a.csv"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(f"x\n{name[:4]}\n")
    files = sorted(root.rglob("*.csv"))
    found = find_material("**/*.csv#separator=,", files, "shop", root=root)
    assert found.source == "data/shop/**/*#separator=,"
    shop = tmp_path / "shop"
    for place, original in found.copied.items():
        (shop / place).parent.mkdir(parents=True)
        shutil.copyfile(original, shop / place)
    require_same_copy(found, shop, data_digest("**/a.csv", root))
    flat = find_material("2024", files[:1] * 2, "shop", root=root)
    assert flat.source == "data/shop"


def test_a_table_that_stays_has_an_address_of_its_own(tmp_path):
    large = find_material("a b.csv#null_values=NA", [], "shop", root=tmp_path)
    assert large.source == f"{tmp_path}/a b.csv#null_values=NA"
    for address in (
        "s3://bucket/orders/*.parquet",
        "postgresql://$USER:$PASSWORD@host/db#table=orders&watermark=at",
        "sqlite:////data/shop.db#table=orders",
    ):
        assert find_material(address, [], "shop", root=tmp_path).source == address
    delta = find_material("delta:tables/orders", [], "shop", root=tmp_path)
    assert delta.source == f"delta:{tmp_path}/tables/orders"


def test_init_is_a_function_too(home):
    with pytest.raises(InitError, match="--keep 'late day'"):
        starter.init("shop", Choices(source="orders.csv"))
    started = starter.init("shop", Choices(source="orders.csv"), yes=True, git=False)
    assert started.state == "new" and "churned" not in started._repr_html_().split("warning")[0]
    assert starter.update("shop").state == "nothing to do"


@pytest.mark.parametrize("width, flags", [(80, 0), (200, 2)])
def test_the_findings_fit_the_screen(width, flags, monkeypatch, capsys):
    "At 80 columns most columns of a table take one line, and the flags stand below it."
    from mlops_nb.front.init_command import print_findings
    from mlops_nb.front.starter.plan import Finding

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    rest = {"read_as": "integer in yrs", "role": "feature", "because": "ROC AUC 0.693 alone"}
    names = ("Seniority (yrs)", "Loan Amount")
    findings = [Finding(column=n, override=f"--ignore '{n}' " + "x" * 9, **rest) for n in names]
    print_findings(findings)
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert all(any(name in line and "alone" in line for line in lines) for name in names)
    assert sum("--ignore '" in line for line in lines) == flags
