"Every lesson of every library notebook runs, on the session's cluster where it needs one."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_lessons(notebook, request):
    flags = []
    if re.search(r"#\|\s*cluster", notebook.read_text()):
        request.getfixturevalue("ray_cluster")
        flags = ["--flags", "cluster"]
    done = subprocess.run([Path(sys.executable).parent / "nbdev-test", str(notebook), "--n-workers", "0", "--do-print",
                           *flags], cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
