"The code of a notebook is compared with the package before anything is made of it."

import importlib
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import free_port
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from mlops_nb.core import authoring
from mlops_nb.core.authoring import export_differences
from mlops_nb.core.code_comparison import defined_names, looks_same
from mlops_nb.core.settings import create
from mlops_nb.front import lab

PROJECT = '[tool.nbdev]\nnbs_path = "nbs"\nlib_path = "stall"\n'
TARGET = "#| default_exp train"
FEATURES = "#| export\nLIMIT = 3\n\n\ndef features(rows):\n    return rows[:LIMIT]"
CELLS = [TARGET, "#| export\nimport json as j\nfrom os.path import join", FEATURES, "trials = 3"]


def write(path: Path, cells: list[str]) -> None:
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)


@pytest.fixture
def stall(tmp_path, monkeypatch):
    "A workspace whose notebook is exported, and what a kernel there would have."
    settings = create(tmp_path / "w", workspace={"package": "stall"}, serve={"port": free_port()})
    settings.notebooks.mkdir(exist_ok=True)
    (settings.root / "pyproject.toml").write_text(PROJECT)
    notebook = settings.notebooks / "3_train.ipynb"
    write(notebook, CELLS)
    lab.export_notebook(notebook, settings=settings)
    monkeypatch.syspath_prepend(str(settings.root))

    def differences(cells=CELLS, path=notebook, **names):
        return export_differences(settings, path, list(cells), names)

    yield SimpleNamespace(
        settings=settings,
        notebook=notebook,
        module=settings.root / "stall/train.py",
        differences=differences,
    )
    for name in [n for n in sys.modules if n.split(".")[0] == "stall"]:
        del sys.modules[name]


def test_the_same_code_is_the_same(stall):
    assert stall.differences() == []


@pytest.mark.parametrize(
    "cell",
    [
        "#| export\n# many\nLIMIT = 3  # so\n\ndef features( rows ):\n    return rows[ :LIMIT ]",
        "#|export\nLIMIT=3\ndef features(rows): return rows[:LIMIT]",
    ],
)
def test_comments_and_layout_do_not_count(stall, cell):
    assert stall.differences([*CELLS[:2], cell]) == []
    write(stall.notebook, [*CELLS[:2], cell, CELLS[3]])
    assert stall.differences([*CELLS[:2], cell]) == []


EDITS = {
    "a function": ("[:LIMIT]", "[1:LIMIT]", "features", 3),
    "a constant": ("LIMIT = 3", "LIMIT = 4", "LIMIT", 3),
    "an import": ("import json as j", "import csv as j", "j", 2),
    "a part of an import": ("import join", "import split as join", "join", 2),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_that_ran_and_was_not_saved_is_named_with_its_cell(stall, edit):
    old, new, name, cell = EDITS[edit]
    ran = [*CELLS, *[c.replace(old, new) for c in CELLS if old in c]]
    (problem,) = stall.differences(ran)
    expected = f"`{name}` (cell {cell} of 3_train.ipynb) is not in stall.train as it was run here"
    assert problem == expected


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_that_was_saved_and_not_exported_is_named_with_its_cell(stall, edit):
    old, new, name, cell = EDITS[edit]
    cells = [c.replace(old, new) for c in CELLS]
    write(stall.notebook, cells)
    (problem,) = stall.differences(cells)
    assert problem.startswith(
        f"`{name}` (cell {cell} of 3_train.ipynb) is not in stall.train as the"
    )
    lab.export_notebook(stall.notebook, settings=stall.settings)
    assert stall.differences(cells) == []


def test_an_edit_that_was_exported_and_not_run_again_is_refused(stall):
    write(stall.notebook, [c.replace("LIMIT = 3", "LIMIT = 5") for c in CELLS])
    lab.export_notebook(stall.notebook, settings=stall.settings)
    (problem,) = stall.differences(CELLS)
    assert "`LIMIT` (cell 3 of 3_train.ipynb) is not in stall.train as it was run here" == problem


def test_a_deleted_function_that_the_module_still_has(stall):
    write(stall.notebook, [*CELLS[:2], "#| export\nLIMIT = 3"])
    (problem,) = stall.differences(CELLS[:2])
    assert problem == "`features` (3_train.ipynb) is not in stall.train as the notebook has it"


def test_a_statement_without_a_name(stall):
    cells = [*CELLS, "#| export\nprint('imported')"]
    write(stall.notebook, cells)
    (problem,) = stall.differences(cells)
    assert problem.startswith("a statement (cell 5 of 3_train.ipynb) is not in stall.train")


def test_a_cell_that_does_not_compile_is_named(stall):
    write(stall.notebook, [*CELLS, "#| export\ndef broken(:\n    pass"])
    (problem,) = stall.differences()
    assert problem.startswith("3_train.ipynb cannot be exported: ")


def test_a_notebook_that_was_never_exported(stall):
    path = stall.settings.notebooks / "4_new.ipynb"
    write(path, ["#| default_exp new", "#| export\nRATE = 1"])
    (problem,) = stall.differences(["#| export\nRATE = 1"], path)
    assert problem == "`RATE` (cell 2 of 4_new.ipynb) is not in stall.new as the notebook has it"


def test_no_false_alarms(stall):
    "Leftovers of earlier edits, trials in other cells, broken cells, other notebooks."
    leftover = "#| export\ndef features_of_yesterday(rows): return rows"
    trial = "LIMIT = 100"
    broken = "def oops(:"
    assert stall.differences([*CELLS, leftover, trial, broken, "%%time\n1", "!ls"]) == []
    edited = [c.replace("LIMIT = 3", "LIMIT = 9") for c in CELLS]
    copy = stall.notebook.with_name("3_train-Copy1.ipynb")
    write(copy, edited)
    scratch = stall.settings.root / "scratch.ipynb"
    write(scratch, ["from stall.train import features"])
    assert stall.differences(edited, copy) == []
    assert stall.differences(["from stall.train import features"], scratch) == []
    assert stall.differences(edited, None) == []


def test_a_module_of_another_notebook_counts_once_it_is_imported(stall):
    other = stall.settings.notebooks / "0_objective.ipynb"
    write(other, ["#| default_exp objective", "#| export\nGOAL = 1"])
    lab.export_notebook(other, settings=stall.settings)
    write(other, ["#| default_exp objective", "#| export\nGOAL = 2"])
    assert stall.differences() == []
    importlib.import_module("stall.objective")
    (problem,) = stall.differences()
    assert problem.startswith("`GOAL` (cell 2 of 0_objective.ipynb) is not in stall.objective")


def export_anew(stall, old: str, new: str) -> list[str]:
    "Edit and export; the file's time is later than that of what was imported before."
    cells = [c.replace(old, new) for c in CELLS]
    write(stall.notebook, cells)
    lab.export_notebook(stall.notebook, settings=stall.settings)
    later = time.time() + 10
    os.utime(stall.module, (later, later))
    return cells


@pytest.mark.parametrize(("old", "new"), [("LIMIT = 3", "LIMIT = 7"), ("[:LIMIT]", "[2:LIMIT]")])
def test_an_old_import_is_refused_until_it_is_reloaded(stall, old, new):
    module = importlib.import_module("stall.train")
    assert stall.differences() == []
    cells = export_anew(stall, old, new)
    (problem,) = stall.differences(cells)
    assert "of stall.train was exported anew after this kernel had imported it" in problem
    importlib.reload(module)
    assert stall.differences(cells) == []


def test_a_name_that_was_taken_from_a_module_before_it_changed(stall):
    module = importlib.import_module("stall.train")
    taken = "from stall.train import LIMIT as most, features"
    before = {"most": module.LIMIT, "features": module.features}
    export_anew(stall, "LIMIT = 3", "LIMIT = 8")
    importlib.reload(module)
    (problem,) = stall.differences([taken], None, **before)
    assert problem == "`most` was taken from stall.train before that changed"
    assert stall.differences([taken, "most = 1"], None, **before) == []
    assert stall.differences([taken], None, most=8, features=module.features) == []


def test_code_that_is_compiled_apart_from_its_module_is_the_same():
    "Python loads a method of an imported module in two ways. IPython reloads functions one by one."
    whole, apart = {}, {}
    code = "def low(rows): return [math.floor(math.fabs(r)) for r in rows if r is not None]\n"
    exec("import math\n" + code, whole)
    exec(code, apart)
    assert looks_same(whole["low"], apart["low"])
    exec(code.replace("floor", "ceil"), apart)
    assert not looks_same(whole["low"], apart["low"])


def test_names_of_every_kind_of_statement():
    code = (
        "a, (b, *c) = 1, (2, 3)\nd: int = 4\ne += 1\nfor f in (): g = 1\nwith open as h: pass\n"
        "if a:\n    from x import i\nelse:\n    import j.k\nasync def l(): m = 1\nclass N: o = 2\n"
        "[p for p in a]\n(q := 3)\n'text'\n"
    )
    names = "a b c d e f g h i j l N q".split()
    assert {*defined_names(code)} == {*names, ""}


# ---- in kernels

LIVE = "from mlops_nb.core.authoring import require_exported\nrequire_exported()"


def run(stall, *cells: str, **env: str) -> list[dict]:
    "Run cells in a real kernel of the workspace; return the outputs of the last one."
    sources = [f"import sys\nsys.path.insert(0, {str(stall.settings.root)!r})", *CELLS, *cells]
    nb = new_notebook(cells=[new_code_cell(cell) for cell in sources])
    client = NotebookClient(nb, kernel_name="python3", timeout=120, allow_errors=True)
    variables = {"MLOPS_NB_WORKSPACE": str(stall.settings.root), **env}
    client.execute(env={**os.environ, **variables})
    return nb.cells[-1].outputs


def test_a_kernel_is_refused_where_a_person_works_and_not_in_a_run(stall):
    edit = FEATURES.replace("[:LIMIT]", "[5:LIMIT]")
    person = {"JPY_SESSION_NAME": str(stall.notebook)}
    assert run(stall, LIVE, **person) == []
    (error,) = run(stall, edit, LIVE, **person)
    assert error["ename"] == "ExportError" and "run `nbdev-export`" in error["evalue"]
    (error,) = run(stall, edit, LIVE, **person, MLOPS_NB_LAB="1")
    assert "save the notebook (Ctrl-S" in error["evalue"]
    assert run(stall, edit, LIVE, **person, MLOPS_NB_RUN_ID="1") == []
    assert run(stall, edit, LIVE) == []


RENEW = """
from mlops_nb.core import cluster
import ray
cluster.connect()

@ray.remote(num_cpus=0)
def limit():
    import stall.train
    return stall.train.LIMIT

states = [ray.get(limit.remote()), cluster.renew_code()]
from pathlib import Path
file = Path({file!r})
file.write_text(file.read_text().replace("LIMIT = 3", "LIMIT = 30"))
states += [cluster.renew_code(), ray.get(limit.remote()), cluster.renew_code()]
states
"""


def test_a_job_gets_the_package_as_it_is_now(ray_cluster, stall):
    outputs = run(stall, RENEW.format(file=str(stall.module)))
    assert len(outputs) == 1, outputs
    assert outputs[0]["data"]["text/plain"] == "[3, False, True, 30, False]"


# ---- the server's hook


class Log:
    def __init__(self):
        self.errors = []

    def info(self, *words):
        pass

    def error(self, text, *words):
        self.errors.append(text % words)


def save(stall, path: Path) -> list[str]:
    "As the server does after a save; return the errors in its log."
    log = Log()
    lab._export_saved(path, stall.settings, log)
    return log.errors


def test_a_save_exports_as_nbdev_does(stall, monkeypatch):
    from nbdev.doclinks import nbdev_export

    write(stall.notebook, [c.replace("LIMIT = 3", "LIMIT = 6") for c in CELLS])
    assert save(stall, stall.notebook) == []
    text = stall.module.read_text()
    monkeypatch.chdir(stall.settings.root)
    nbdev_export(path=str(stall.settings.notebooks))
    assert "LIMIT = 6" in text and stall.module.read_text() == text
    state = stall.module.stat()
    assert save(stall, stall.notebook) == [] and stall.module.stat() == state


def test_other_files_are_left_alone(stall):
    "Copies, notebooks elsewhere, files that are none, notebooks without a module."
    edited = [c.replace("LIMIT = 3", "LIMIT = 6") for c in CELLS]
    text = stall.module.read_text()
    elsewhere = stall.settings.root / "elsewhere.ipynb"
    copy = stall.notebook.with_name("3_train-Copy1.ipynb")
    for path in (elsewhere, copy):
        write(path, edited)
        assert save(stall, path) == []
    (stall.settings.root / "notes.txt").write_text("LIMIT = 6")
    assert save(stall, stall.settings.root / "notes.txt") == []
    plain = stall.settings.notebooks / "9_plain.ipynb"
    write(plain, ["1 + 1", "#| export\nX = 1"])
    assert save(stall, plain) == []
    assert stall.module.read_text() == text
    assert {f.name for f in stall.module.parent.iterdir()} <= {
        "train.py",
        "__init__.py",
        "__pycache__",
    }


@pytest.mark.parametrize("content", ["#| export\ndef broken(:", None])
def test_what_cannot_be_exported_is_logged_and_changes_nothing(stall, content):
    text = stall.module.read_text()
    if content:
        write(stall.notebook, [*CELLS, content])
    else:
        stall.notebook.write_text("{half a file")
    (error,) = save(stall, stall.notebook)
    assert error.startswith("3_train.ipynb was saved, and cannot be exported: ")
    assert stall.module.read_text() == text


def test_only_kernels_of_this_python_load_the_extension():
    class Manager:
        def get_kernel_spec(self, name):
            return SimpleNamespace(argv=json.loads(name))

    manager = Manager()
    lab._extend_kernels(manager)
    start = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]

    def options(*argv: str) -> list[str]:
        return [a for a in manager.get_kernel_spec(json.dumps(argv)).argv if "extension" in a]

    assert len(options(sys.executable, *start)) == len(options("python", *start)) == 1
    assert options("/other/bin/python", *start) == options("R", "--slave") == []


def test_a_lab_reads_the_package_from_the_workspace(stall, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/before")
    variables = lab.lab_variables(stall.settings)
    assert variables["PYTHONPATH"] == f"{stall.settings.root}{os.pathsep}/before"
    assert authoring.LAB_VARIABLE in variables
