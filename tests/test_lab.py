"JupyterLab in a real browser: an edited feature function reaches the model, or is refused."

import time

import browser
import nbformat
import pytest
from conftest import free_port
from nbformat.v4 import new_code_cell, new_notebook

from mlops_nb.core import cluster
from mlops_nb.core.settings import create

PROJECT = '[tool.nbdev]\nnbs_path = "nbs"\nlib_path = "shop"\n'
KERNEL = {"name": "python3", "display_name": "python3", "language": "python"}
# Only the distance from zero says anything about `y`: half of `x` is worth no more than chance.
CELLS = {
    "target": "#| default_exp train",
    "imports": "#| export\nimport polars as pl\n\nfrom mlops_nb import Objective",
    "objective": (
        "#| export\nOBJECTIVE = Objective(name='far', question='Which are far?', goal='To know.', "
        "target='y', positive='far', key='id', metric='roc_auc', accept={'roc_auc': 0.5})"
    ),
    "features": (
        "#| export\ndef features(rows: pl.DataFrame) -> pl.DataFrame:\n"
        '    "How far a row is."\n'
        "    return rows.with_columns(new=pl.col('x') / 2)"
    ),
    "rows": (
        "import numpy as np\n\nx = np.random.default_rng(0).uniform(-1, 1, 400)\n"
        "y = np.where(abs(x) > 0.5, 'far', 'near')\n"
        "rows = pl.DataFrame({'id': range(400), 'x': x, 'y': y})"
    ),
    "search": (
        "from sklearn.linear_model import LogisticRegression\nfrom sklearn.metrics import "
        "roc_auc_score\n\nfrom mlops_nb import Candidate, glue, search\n\n"
        "kinds = [Candidate('logistic', LogisticRegression())]\n"
        "result = search(rows, OBJECTIVE, kinds, features=features, trials=1)\n"
        "glue('trials', result.best.cv['mean'])  # what the trials saw\n"
        "glue('model', roc_auc_score(y == 'far', result.best.probability(rows)))"
    ),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    "A workspace with one notebook, exported, and a head of its own."
    if not browser.chromium_path():
        pytest.skip("chromium is not installed: apt-get install chromium")
    from mlops_nb.front.lab import export_notebook

    folder = tmp_path_factory.mktemp("lab")
    settings = create(
        folder / "my shop", workspace={"package": "shop"}, serve={"port": free_port()}
    )
    (settings.root / "pyproject.toml").write_text(PROJECT)
    settings.notebooks.mkdir(exist_ok=True)
    cells = [new_code_cell(source) for source in CELLS.values()]
    nb = new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    nbformat.write(nb, settings.notebooks / "3_train.ipynb")
    export_notebook(settings.notebooks / "3_train.ipynb", settings=settings)
    yield settings
    cluster.down(settings)


@pytest.fixture(scope="module")
def lab(workspace):
    "JupyterLab on the workspace, with a browser."
    with browser.lab_in_browser(workspace.root) as running:
        yield running


@pytest.mark.browser
def test_an_edited_feature_function_reaches_trials_and_model(workspace, lab):
    "Not saved: refused. Saved: the trials and the final fit have it, without a restart."
    page = lab.open("nbs/3_train.ipynb")
    module = workspace.root / "shop/train.py"
    cells = page.run_all()
    before = glued(cells)
    assert not [cell.red for cell in cells if cell.red]
    assert before["trials"] < 0.7 and before["model"] < 0.7

    page.edit("pl.col('x') / 2", "pl.col('x').abs()")
    last = page.run_all(save=False)[-1]
    assert last.error.startswith("ExportError: `features` (cell 4 of 3_train.ipynb) is not in shop")
    assert "save the notebook (Ctrl-S" in last.error and ".abs()" not in module.read_text()

    page.save()
    until = time.monotonic() + 60
    while ".abs()" not in module.read_text() and time.monotonic() < until:
        time.sleep(0.1)
    after = glued(page.run_all())
    assert after["trials"] > 0.95 and after["model"] > 0.95


@pytest.mark.browser
def test_an_error_in_a_cell_neither_blocks_the_save_nor_changes_the_module(workspace, lab):
    module = workspace.root / "shop/train.py"
    text = module.read_text()
    page = lab.open("nbs/3_train.ipynb")
    page.edit("def features(", "def features(:")
    page.save()
    assert "def features(:" in page.file.read_text() and module.read_text() == text
    page.edit("def features(:", "def features(")
    page.save()
    assert module.read_text() == text


def glued(cells: list[browser.Cell]) -> dict:
    "Return what the cells glued; fail if one has an error."
    assert not [cell.error for cell in cells if cell.error]
    return {name: value for cell in cells for name, value in cell.glued.items()}
