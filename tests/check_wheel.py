"The wheel builds and installs, imports without doing anything, and shows a page."

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

PAGE = """
from mlops_nb.core import templates
from mlops_nb.front import pages
assert "site-packages" in templates.__file__
nothing = {"workspace": {"name": "fresh"}, "endpoints": [], "alerts": [], "models": [], "run": None}
html = pages.control_page(nothing)
assert html.startswith("<!doctype html>") and "<h1>Overview</h1>" in html and ".mlops-nb {" in html
"""

with tempfile.TemporaryDirectory() as folder:
    run = lambda *command: subprocess.run([str(c) for c in command], check=True, cwd=folder)
    run(BIN / "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = Path(folder).glob("*.whl")
    run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, "fresh")
    fresh = Path(folder) / "fresh" / "bin"
    run(
        BIN / "uv",
        "pip",
        "sync",
        "--quiet",
        "--require-hashes",
        "--python",
        fresh / "python",
        ROOT / "requirements.lock",
    )
    run(BIN / "uv", "pip", "install", "--quiet", "--no-deps", "--python", fresh / "python", wheel)
    run(
        fresh / "python",
        "-c",
        "import mlops_nb, sys; assert 'site-packages' in mlops_nb.__file__; "
        "assert 'ray' not in sys.modules",
    )
    run(fresh / "python", "-c", PAGE)
    run(fresh / "mlops-nb", "--help")
