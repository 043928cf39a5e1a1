"Every lesson of every library notebook runs, on the session's cluster where it needs one."

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*_*/*.ipynb"))
ON_RAY = [n for n in NOTEBOOKS if re.search(r"#\|\s*cluster", n.read_text())]


def lessons(notebooks: list[Path], *words: str) -> None:
    "nbdev-test on these notebooks; an assertion error if one failed or was left out."
    names = "|".join(re.escape(n.name) for n in notebooks)
    command = [
        "nbs",
        "--file-re",
        f"^({names})$",
        "--skip-folder-re",
        "churn",
        "--do-print",
        *words,
    ]
    done = subprocess.run(
        [Path(sys.executable).parent / "nbdev-test", *command],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    # With no match nbdev-test says "No files were eligible" and exits 0: so each one is counted.
    completed = re.findall(r"- Completed (.+?\.ipynb)", done.stdout)
    assert sorted(ROOT / n for n in completed) == sorted(notebooks)


def test_every_library_notebook_has_its_lessons_run():
    tracked = subprocess.run(
        ["git", "ls-files", "nbs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    library = [
        n for n in tracked.stdout.split() if n.endswith(".ipynb") and not n.startswith("nbs/churn/")
    ]
    assert sorted(ROOT / n for n in library if n != "nbs/index.ipynb") == NOTEBOOKS


def test_lessons_without_a_cluster():
    lessons([n for n in NOTEBOOKS if n not in ON_RAY], "--n-workers", "2")


@pytest.mark.xdist_group(
    "lessons"
)  # on the process that has less to do, and so on a cluster of its own
def test_lessons_on_the_cluster(ray_cluster):
    lessons(ON_RAY, "--n-workers", "0", "--flags", "cluster")
