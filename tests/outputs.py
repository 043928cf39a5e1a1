"""After `make demo`: gives the reference notebooks the outputs of their last execution.

So readers see what is true.
"""

import subprocess
import sys
from pathlib import Path

import nbformat

from mlops_nb.core.settings import load_settings

ROOT = Path(__file__).parent.parent

settings = load_settings(ROOT)
for stage in (ROOT / settings.workspace.notebooks).glob("*.ipynb"):
    names = (
        f"*/{stage.stem}.ipynb" if stage.name[0].isdigit() else f"*/{stage.stem}_*.ipynb"
    )  # of a batch
    newest = max(
        Path(settings.runs).glob(names), key=lambda p: p.stat().st_mtime
    )  # others reuse its result
    shown = {
        c.id: c.outputs for c in nbformat.read(newest, as_version=4).cells if c.cell_type == "code"
    }
    notebook = nbformat.read(stage, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = shown[cell.id]
    nbformat.write(notebook, stage)
subprocess.run([Path(sys.executable).parent / "nbdev-clean"], cwd=ROOT, check=True)
