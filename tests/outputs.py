"""After `make demo`: gives the reference notebooks the outputs of their last execution.

So readers see what is true. What no two runs share (times, ids, paths) is shown as `…`, and
progress is left out.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from notebook_outputs import VOLATILE, VOLATILE_IN_STAGES

from mlops_nb.core.settings import load_settings

ROOT = Path(__file__).parent.parent
CHANGES = re.compile("|".join([*VOLATILE.values(), *VOLATILE_IN_STAGES.values()]))


def steady(value: Any) -> Any:
    "Return an output, or a part of it, with `…` for what another run would not show."
    if isinstance(value, dict):
        return type(value)({k: steady(v) for k, v in value.items()})
    if isinstance(value, list):
        return [steady(v) for v in value]
    return CHANGES.sub("…", value) if isinstance(value, str) else value


def is_progress(output: dict) -> bool:
    "Return whether an output is text that a run printed about itself."
    return output["output_type"] == "stream" and CHANGES.search(output["text"]) is not None


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
            cell.outputs = [steady(o) for o in shown[cell.id] if not is_progress(o)]
    nbformat.write(notebook, stage)
subprocess.run([Path(sys.executable).parent / "nbdev-clean"], cwd=ROOT, check=True)
