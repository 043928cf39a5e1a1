"Every lesson of every library notebook runs, on the session's cluster where it needs one."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
ON_RAY = [n for n in NOTEBOOKS if re.search(r"#\|\s*cluster", n.read_text())]


def lessons(*words: str) -> None:
    "nbdev-test, or an assertion error with what it said."
    done = subprocess.run([Path(sys.executable).parent / "nbdev-test", *words, "--do-print"], cwd=ROOT, env=os.environ,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_lessons_without_a_cluster():
    alone = "|".join(re.escape(n.name) for n in NOTEBOOKS if n not in ON_RAY)
    lessons("nbs", "--file-re", f"^({alone})$", "--skip-folder-re", "churn", "--n-workers", "2")


@pytest.mark.parametrize("notebook", ON_RAY, ids=lambda n: n.stem)
def test_lessons_on_the_cluster(notebook, ray_cluster):
    lessons(str(notebook), "--n-workers", "0", "--flags", "cluster")
