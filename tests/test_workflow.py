"""Workflows of stage notebooks: checks before a run, records of failures, reuse of results."""

import json
import multiprocessing
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import nbformat
import polars as pl
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from mlops_nb.core import events, library
from mlops_nb.core.errors import WorkflowError
from mlops_nb.core.library import imported_modules
from mlops_nb.core.locks import try_lock, workspace_lock
from mlops_nb.core.sections import StageSection
from mlops_nb.core.settings import create, load_settings
from mlops_nb.flow.workflow import Workflow, driver, kernels, latest
from mlops_nb.flow.workflow.batch import grid
from mlops_nb.flow.workflow.batch import map as workflow_map
from mlops_nb.flow.workflow.cache import key
from mlops_nb.flow.workflow.cells import parse_cell
from mlops_nb.flow.workflow.driver import drive
from mlops_nb.flow.workflow.execution import Execution, _stage_key
from mlops_nb.flow.workflow.ledger import Ledger
from mlops_nb.flow.workflow.outputs import OUTPUT_LIMIT, encode, glue, read_outputs
from mlops_nb.flow.workflow.stages import Stage

NOTEBOOKS = Path(__file__).parent / "notebooks"
GOOD = ("1_make", "2_count", "3_watch")


def workflow(folder: Path, **named: str) -> Workflow:
    "A workflow of fixture notebooks: name in the workflow -> fixture."
    for name, fixture in named.items():
        shutil.copy(NOTEBOOKS / f"{fixture}.ipynb", folder / f"{name.strip('_')}.ipynb")
    return Workflow.discover(folder)


def good(folder: Path) -> Workflow:
    return workflow(folder, **{f"_{name}": name for name in GOOD})


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def code(path: str | Path) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def shown(cell: dict, stream: str) -> list[str]:
    return "".join(o["text"] for o in cell["outputs"] if o.get("name") == stream).split()


def status(path: str | Path) -> list[str]:
    return [c.metadata.papermill.status for c in code(path)]


# Before anything runs


def test_good_notebooks_are_wired_by_name(tmp_path):
    flow = good(tmp_path)
    assert [s.name for s in flow.stages] == ["make", "count", "watch"]
    assert flow.wiring == {"make": {}, "count": {"table": "make"}, "watch": {"total": "count"}}
    assert flow.check({"rows": 1}) == []
    assert "<svg" in flow._repr_html_()


def test_order_is_by_number_not_by_letter(tmp_path):
    flow = workflow(tmp_path, _2_make="1_make", _10_count="2_count")
    assert [s.name for s in flow.stages] == ["make", "count"]


@pytest.mark.parametrize(
    ("fixture", "cell", "said"),
    [
        ("no_parameters", None, "no code cell is tagged `parameters`"),
        ("unknown_name", 2, "did you mean `table`?"),
        ("does_not_compile", 3, "does not compile"),
        ("does_not_compile", 4, "write the output's name out"),
        ("two_parameters", 3, "so is cell 2"),
    ],
)
def test_each_mistake_is_found_with_its_cell(tmp_path, fixture, cell, said):
    found = workflow(tmp_path, _1_make="1_make", _2_wrong=fixture).check()
    assert any(
        p.notebook == "2_wrong.ipynb" and p.cell == cell and said in p.message for p in found
    ), found


def test_all_mistakes_are_found_at_once_and_nothing_is_started(tmp_path):
    flow = workflow(
        tmp_path,
        _1_make="1_make",
        _2_a="no_parameters",
        _3_b="does_not_compile",
        _4_c="unknown_name",
    )
    settings = create(tmp_path / "ws")
    with pytest.raises(WorkflowError) as e:
        flow.run({"rwos": 1}, settings=settings)
    said = str(e.value)
    for part in (
        "2_a.ipynb: no code cell",
        "3_b.ipynb, cell 3",
        "4_c.ipynb, cell 2",
        "did you mean `rows`?",
        "glues `table`, which make glues too",
    ):
        assert part in said
    assert not settings.state.exists()


def test_a_circle_is_named(tmp_path):
    flow = workflow(tmp_path, _1_cycle="cycle", _2_count="2_count")
    [problem] = flow.check()
    assert "comes later" in problem.message and "circle" in problem.message and problem.cell == 2
    [given, still] = flow.check(
        {"total": 3}
    )  # a value does not cut it: `total` is another stage's to give
    assert (
        "`total` cannot be given: stage count glues it, and cycle takes it" in given.message
        and still == problem
    )


HIDDEN = [
    ("%sql y << select 1", "y"),
    ("%load_ext memory_profiler", "y"),
    ("%run other.ipynb", "model"),
    ("%%memit\ny = 1", "y"),
    ("%store -r y", "y"),
    ("exec('y = 1')", "y"),
    ("globals()['y'] = 1", "y"),
    ("get_ipython().user_ns['y'] = 1", "y"),
    ("ip = get_ipython()\nip.push({'y': 1})", "y"),
    ("import builtins\nbuiltins.y = 1", "y"),
    ("import sys\nsys.modules['__main__'].y = 1", "y"),
    ("e = 1\ndef f(): return e\nf()\ndel e",),
    ("try: f\nexcept NameError as e: pass", "e"),
    ("def f(x: 'np.ndarray'): return x",),
]
VISIBLE = [
    ("%time df = [1]", "sum(df)"),
    ("%%bash --out files --err=errors\nls", "files, errors"),
    ("%%capture --no-stderr cap\n1", "cap.stdout"),
    ("%%capture out\n%%time\nx = 1", "x, out"),
    ("files = !ls", "files"),
    ("!y=1; echo $y", "_exit_code"),
    ("pip install polars",),
    ("ls",),
    ("cd data",),
    ("from math import *", "sin(1)"),
    ("if rows:\n    a = 1", "a"),
    ("from time import time", "time"),
    ("later  # noqa",),
    ("_12, _i3, _sh",),
    ("%load_ext autoreload\n%aimport shop", "shop"),
    ("with open('a'):\n    %time b = 1", "b"),
]


@pytest.mark.parametrize(
    ("cells", "warnings"), [(c, 1) for c in HIDDEN] + [(c, 0) for c in VISIBLE]
)
def test_a_name_that_may_be_defined_is_no_error(tmp_path, cells, warnings):
    stage(tmp_path, "1_a", "rows = 1", *cells)
    problems, noted = Workflow.discover(tmp_path).review()
    assert problems == [] and len(noted) == warnings and all(p.cell and p.warning for p in noted), (
        problems,
        noted,
    )


@pytest.mark.parametrize(
    ("cells", "place"),
    [
        (("%matplotlib inline\n%load_ext autoreload", "!ls", "%time total = totl"), (4, "line 1")),
        (("%%capture out\n%%time\n\ntotal = totl",), (2, "line 4")),
        (("def f():\n    totl = 1", "f(), totl"), (3, "line 1")),
        (("%%bash\ntotl=1", "totl"), (3, "line 1")),
    ],
)
def test_a_name_that_nothing_could_define_is_an_error(tmp_path, cells, place):
    stage(tmp_path, "1_a", "rows = 1", *cells)
    [problem], warnings = Workflow.discover(tmp_path).review()
    assert (
        problem.cell,
        problem.message.split(":")[0],
    ) == place and "nothing defines `totl`" in problem.message
    assert warnings == []


def test_code_that_python_cannot_even_read_is_named(tmp_path):
    path = stage(tmp_path, "1_a", "", "x = 'half'", "y = 1\0")
    edit(path, "half", "\\ud800")
    assert [p.cell for p in Workflow.discover(tmp_path).check()] == [2, 3]


# What is no stage


def test_stages_that_cannot_be_read_are_all_named_with_the_reason(tmp_path):
    stage(tmp_path, "1_a", "")
    for name, text in {
        "2_empty": "",
        "3_merge": '{\n<<<<<<< HEAD\n "cells": [],\n=======\n>>>>>>> x\n}',
        "4_other": '{"a": 1}',
        "5_cell": '{"cells": [{}], "nbformat": 4, "nbformat_minor": 5}',
        "6_half": '{"cells": [',
    }.items():
        (tmp_path / f"{name}.ipynb").write_text(text)
    with pytest.raises(WorkflowError, match="these stages cannot be read") as e:
        Workflow.discover(tmp_path)
    assert [p.notebook.partition("_")[0] for p in e.value.problems] == ["2", "3", "4", "5", "6"]
    for reason in (
        "2_empty.ipynb: not a notebook: the file is empty",
        "a merge left its conflict in line 2",
    ):
        assert reason in str(e.value)


OLD = (
    '{"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, '
    '"worksheets": [{"cells": [], "metadata": {}}]}'
)


def test_what_is_no_stage_hinders_nothing_and_is_named(tmp_path):
    "Copies and new notebooks beside the stages; broken ones anywhere among the library's."
    settings = create(tmp_path / "w", workspace={"package": "shop"})
    nbs = tmp_path / "w" / "nbs"
    (nbs / ".ipynb_checkpoints").mkdir(parents=True)
    original = stage(nbs, "2_x", "", "glue('n', 1)")
    for copy in ("2_x-Copy1", "2_x-Copy2", "2_x (1)", "2_x copy", "2_x-checkpoint"):
        shutil.copy(original, nbs / f"{copy}.ipynb")
    for name, text in {
        "Untitled": "",
        "conflict": "<<<<<<< HEAD\n",
        "old": OLD.replace('""', '"default_exp"'),
        ".ipynb_checkpoints/2_x-checkpoint": "",
        "_drafts": "",
    }.items():
        (nbs / f"{name}.ipynb").write_text(text)
    flow = Workflow.discover(nbs)
    problems, warnings = flow.review({}, settings)
    assert [s.name for s in flow.stages] == ["x"] and problems == []
    assert sorted(p.notebook for p in warnings) == sorted(
        [f"2_x{end}.ipynb" for end in ("-Copy1", "-Copy2", " (1)", " copy", "-checkpoint")]
        + ["Untitled.ipynb", "conflict.ipynb"]
    )
    assert "a merge left its conflict in line 1" in next(
        p.message for p in warnings if p.notebook[0] == "c"
    )


def test_a_notebook_that_cannot_be_exported_is_named(tmp_path):
    settings = create(tmp_path / "w", workspace={"package": "shop"})
    (tmp_path / "w" / "nbs").mkdir()
    for name in ("1_price", "cost"):
        cell = {
            "cell_type": "code",
            "input": "#| default_exp price",
            "language": "python",
            "outputs": [],
            "metadata": {"tags": ["parameters"]},
        }
        old = json.loads(OLD)
        old["worksheets"][0]["cells"].append(cell)
        (tmp_path / "w" / "nbs" / f"{name}.ipynb").write_text(json.dumps(old))
    problems, warnings = Workflow.discover(tmp_path / "w" / "nbs").review({}, settings)
    assert [p.notebook for p in problems] == ["1_price.ipynb"] and [
        p.notebook for p in warnings
    ] == ["cost.ipynb"]
    assert problems[0].message == (
        "cannot be exported: has the notebook format 3, too old for nbdev: "
        "save it anew in JupyterLab"
    )


# Parameters


def test_what_a_stage_gives_cannot_be_given(tmp_path):
    stage(tmp_path, "1_test", "rows = 1\nlimit = 3", "glue('passed', True)\nglue('limit', limit)")
    path = stage(tmp_path, "2_register", "passed = False\nlimit = 2", "glue('model', passed)")
    flow = Workflow.discover(tmp_path)
    [problem] = flow.check({"passed": True, "rows": 2})
    assert (
        problem.notebook == "parameters"
        and "stage test glues it, and register takes it" in problem.message
    )
    settings = create(tmp_path / "w")
    with pytest.raises(WorkflowError, match="`passed` cannot be given"):
        flow.run({"passed": True}, settings=settings)
    with pytest.raises(WorkflowError, match="`passed` cannot be given"):
        flow.run({"passed": True}, settings=settings, first="register")
    assert not settings.state.exists()
    assert flow.check({"limit": 4}) == []  # it is a parameter of its giver, too
    assert (
        Workflow((Stage.read(path),)).check({"passed": True}) == []
    )  # a single notebook takes any value


@pytest.mark.parametrize("value", ["a\ud800", ["\udfff"], {"a": "\ud800"}, {"\ud800": 1}])
def test_half_a_surrogate_pair_is_refused_before_anything_is_written(tmp_path, value):
    path, settings = stage(tmp_path, "1_a", "x = None", "glue('y', 1)"), create(tmp_path / "w")
    message = r"U\+D[8F].. at character \d, half of a surrogate pair"
    [problem] = Workflow.discover(tmp_path).check({"x": value})
    assert re.search(message, problem.message) and problem.message.encode()
    with pytest.raises(WorkflowError, match=message):
        Workflow.discover(tmp_path).run({"x": value}, settings=settings)
    with pytest.raises(WorkflowError, match=message):
        workflow_map(path, [{"x": 1}, {"x": value}], settings=settings)
    with pytest.raises(WorkflowError, match=message):
        glue("x", value)
    assert not settings.state.exists()
    [unknown] = Workflow.discover(tmp_path).check({"\ud800": 1})
    assert unknown.message.encode() and "no stage has a parameter" in unknown.message


GRIDS = [  # the parameter's line, file, content, values
    ("x = 'a'", "g.csv", 'x\n"007"\n010\nNO\n1e5\n', ["007", "010", "NO", "1e5"]),
    ("x = None", "g.csv", 'x\n"007"\n010\n7\n', ["007", "010", "7"]),
    ("x = None", "g.csv", "x\n7\n-1\n0.5\n", [7, -1, 0.5]),
    ("x = 1", "g.csv", "\ufeffx\n7\n007\n", [7, 7]),
    ("x = 0.5", "g.csv", "x\n7\n1e5\n", [7.0, 1e5]),
    ("x = True", "g.csv", "x\nno\n1\nTrue\n", [False, True, True]),
    ("x: str | None = None", "g.csv", "x\n7\nNO\n", ["7", "NO"]),
    ("x: list[int] = []", "g.csv", 'x\n"[1, 2]"\n', [[1, 2]]),
    ("from typing import Literal\nx: Literal['1', '2'] = '1'", "g.csv", "x\n2\n", ["2"]),
    ("x = None", "g.yaml", "x: [SE, NO, DK, on, y]", ["SE", "NO", "DK", "on", "y"]),
    (
        "x = None",
        "g.yaml",
        "- x: 2026-01-31\n- x: 12:30:45\n- x: 010\n- x: 1_000\n- x: 0x1F\n- x: '7'",
        ["2026-01-31", "12:30:45", "010", "1_000", "0x1F", "7"],
    ),
    (
        "x = None",
        "g.yml",
        "\ufeffx: [7, 0.5, true, null, ~, 1e3]",
        [7, 0.5, True, None, None, 1000.0],
    ),
    ("x = 'a'", "g.yaml", "x: [7, 1.0, true, 2026-01-31]", ["7", "1.0", "true", "2026-01-31"]),
    ("x = 0.5", "g.yaml", "x: [1, .5]", [1.0, 0.5]),
    ("x: list[str] = []", "g.yaml", "- x: [007, 7]", [["007", "7"]]),
    ("x = None", "g.yaml", "- x: {a: [NO, 1], b: no}", [{"a": ["NO", 1], "b": "no"}]),
    (
        "x = None",
        "g.json",
        '\ufeff[{"x": "007"}, {"x": 7}, {"x": [1.5, null]}]',
        ["007", 7, [1.5, None]],
    ),
]


@pytest.mark.parametrize(("declared", "name", "text", "values"), GRIDS)
def test_a_grids_values_are_what_the_parameters_types_say(tmp_path, declared, name, text, values):
    path = stage(tmp_path, "1_a", declared)
    (tmp_path / name).write_text(text, encoding="utf-8")
    sets = grid(tmp_path / name, path)
    assert [repr(one) for one in sets] == [repr({"x": value}) for value in values]  # types too
    assert Workflow.discover(tmp_path).check(sets[0]) == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("g.yaml", "x: 1\nx: 2", "the key 'x' stands twice"),
        ("g.json", '{"x": [1], "x": [2]}', "the key 'x' stands twice"),
        ("g.json", "[1]", "expected a list of mappings"),
        ("g.txt", "x", "expected a file ending in"),
        ("g.csv", "", "cannot be read as .csv"),
    ],
)
def test_a_grid_that_says_two_things_is_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(WorkflowError, match=reason):
        grid(tmp_path / name)


def test_magics_shell_and_await_compile():
    for source in ("%time 1", "!ls", "%%bash\nif [ 1 ]; then ls; fi", "await f()", "x?"):
        parse_cell(source)
    with pytest.raises(SyntaxError):
        parse_cell("return 1")


# Outputs

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
nested = lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
plain = st.recursive(leaves, nested, max_leaves=8)


@given(plain)
def test_what_is_glued_comes_back_as_it_was(value):
    try:
        text = encode("x", value)
    except WorkflowError as e:
        assert "more than" in str(e)
    else:
        assert json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("inf"), "x is inf"),
        ({"a": [1, (2,)]}, "x['a'][1] is a builtins.tuple"),
        ({1: 2}, "has the key 1"),
        (Path("a"), "PosixPath"),
        ("é" * OUTPUT_LIMIT, "more than"),
        (b"a", "builtins.bytes"),
        (pl.DataFrame({"a": [object()]}), "cannot be kept as Parquet"),
    ],
)
def test_what_would_not_come_back_is_refused(value, said):
    with pytest.raises(WorkflowError) as e:
        glue("x", value)
    assert said in str(e.value)


@pytest.mark.parametrize("name", ["", "a b", "1a", None])
def test_an_output_has_the_name_of_a_variable(name):
    with pytest.raises(WorkflowError, match="cannot name an output"):
        glue(name, 1)


def test_a_notebook_without_a_number_is_no_stage(tmp_path):
    stage(tmp_path, "1_make", "rows = 1", "glue('made', rows)")
    stage(tmp_path, "simulate", "made: int\nwave = 1", "glue('sent', 1 / 0)")
    flow = Workflow.discover(tmp_path)
    assert [s.name for s in flow.stages] == ["make"] and not flow.left_out
    assert flow.check() == []
    assert "no stage has a parameter `wave`" in str(flow.check({"wave": 2})[0])


# Keys


@pytest.fixture
def package(tmp_path) -> Path:
    files = {
        "__init__": "",
        "a": "from . import b",
        "b": "def f():\n    import shop.sub.c",
        "other": "import shop.a",
        "sub/__init__": "",
        "sub/c": "from ..d import x",
        "d": "import os",
    }
    for name, text in files.items():
        path = tmp_path / "shop" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "shop"


def test_modules_are_found_through_relative_lazy_and_nested_imports(package):
    found = imported_modules([parse_cell("import shop.a")], package)
    assert set(found) == {"shop", "shop.a", "shop.b", "shop.sub", "shop.sub.c", "shop.d"}
    assert imported_modules([parse_cell("import shopping, os.path")], package) == {}


def test_a_key_changes_with_what_matters_only(package, tmp_path):
    stage = workflow(tmp_path, _1_make="1_make").stages[0]
    path, base = stage.path, dict(package=package, lock=tmp_path / "lock")
    before = key(stage, {"rows": 1, "run_id": "a"}, **base)
    assert key(stage, {"rows": 1, "run_id": "b"}, **base) == before
    edit(path, "# Makes a table", "# Makes a fine table")
    assert key(Stage.read(path), {"rows": 1}, **base) == before
    changed = [key(stage, {"rows": 2}, **base), key(stage, {"rows": 1}, **base, fingerprint="x")]
    (tmp_path / "lock").write_text("polars==2.1.0")
    changed.append(key(stage, {"rows": 1}, **base))
    (tmp_path / "lock").unlink()
    edit(
        path,
        "from mlops_nb import glue",
        "import shop.a\\nfrom mlops_nb.flow.workflow.outputs import glue",
    )
    changed.append(key(Stage.read(path), {"rows": 1}, **base))
    (package / "d.py").write_text("import sys")
    changed.append(key(Stage.read(path), {"rows": 1}, **base))
    assert len({before, *changed}) == 6
    (package / "other.py").write_text("import sys")
    assert key(Stage.read(path), {"rows": 1}, **base) == changed[-1]


def test_a_key_changes_with_the_framework(tmp_path):
    stage = workflow(tmp_path, _1_make="1_make").stages[0]
    frameworks = [
        {"version": "1", "digest": "a"},
        {"version": "1", "digest": "b"},
        {"version": "2", "digest": "a"},
    ]
    assert len({key(stage, {"rows": 1}, framework=framework) for framework in frameworks}) == 3


def test_an_execution_gives_its_keys_the_framework_and_a_package_inside_another(
    tmp_path, monkeypatch
):
    settings = create(tmp_path / "w", workspace={"package": "mlops_nb.shop"})
    shop = settings.root / "mlops_nb" / "shop"
    shop.mkdir(parents=True)
    for name in ("__init__", "prices", "rules"):
        (shop / f"{name}.py").write_text("x = 1")
    stage(
        tmp_path,
        "1_price",
        "",
        "from mlops_nb.shop import prices",
        "from mlops_nb.core import events",
    )
    read = lambda: _stage_key(
        Execution(settings, None, None, None), Workflow.discover(tmp_path).stages[0], {}
    )
    before = read()
    (shop / "rules.py").write_text("x = 2")
    assert read() == before
    (shop / "prices.py").write_text("x = 2")
    changed = read()
    monkeypatch.setattr(library, "framework", lambda package: {"version": "0", "digest": package})
    assert len({before, changed, read()}) == 3


def stage(folder: Path, name: str, parameters: str, *code: str) -> Path:
    "A stage notebook written on the spot."
    use = "from mlops_nb import glue\n"
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(use * ("glue(" in c) + c) for c in code]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.mark.parametrize(
    ("declared", "value", "good"),
    [
        ("n: int = 3", 4, True),
        ("n: int = 3", "4", False),
        ("n = 3", 4.5, False),
        ("n = 0.5", 1, True),
        ("n = 'a'", 1, False),
        ("n = None", 1, True),
        ("n: str | None = None", None, True),
        ("n: list[int]", [1], True),
        ("n: list[int]", ["1"], False),
        ("n: Literal['a', 'b'] = 'a'", "c", False),
        ("n: Unknown = 1", "c", True),
        ("n = True", 1, False),
    ],
)
def test_values_are_of_the_declared_type(tmp_path, declared, value, good):
    stage(tmp_path, "1_a", declared)
    found = [
        str(p) for p in Workflow.discover(tmp_path).check({"n": value}) if "expected" in p.message
    ]
    assert bool(found) is not good, found


def test_names_that_nothing_defines_are_found_with_cell_and_line(tmp_path):
    stage(
        tmp_path,
        "1_a",
        "rows: int = 1",
        "%%time\ntotal = rows",
        "%%capture shown\nprint(1)",
        "def f():\n    return totl + total, shown, _, display\n\nf()",
        "!ls\n[x for x in range(3)]\nx",
    )
    assert [(p.cell, p.message) for p in Workflow.discover(tmp_path).check()] == [
        (4, "line 2: nothing defines `totl` (did you mean `total`?)"),
        (5, "line 3: nothing defines `x`"),
    ]


def test_sections_of_stages_are_checked(tmp_path):
    stage(tmp_path, "1_a", "")
    stage(tmp_path, "2_b", "")
    settings = create(tmp_path / "w", **{"stage:bb": {"retries": 1}, "stage:a": {"after": "b"}})
    said = [str(p) for p in Workflow.discover(tmp_path).check({}, settings)]
    assert len(said) == 2 and "[stage:bb]: no notebook is this stage (did you mean `b`?)" in said[0]
    assert "[stage:a]: after = b: no stage before it" in said[1]


def test_a_library_out_of_step_is_told(tmp_path):
    package = tmp_path / "w" / "shop"
    settings = create(tmp_path / "w", workspace={"package": "shop"})
    (tmp_path / "w" / "nbs").mkdir()
    path = tmp_path / "w" / "nbs" / "1_price.ipynb"
    cells = [
        new_code_cell("#| default_exp price"),
        new_code_cell("", metadata={"tags": ["parameters"]}),
        new_code_cell("#| export\ndef price(): return 3"),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    flow = Workflow.discover(path.parent)
    assert "shop/price.py is not what this notebook exports" in str(flow.check({}, settings)[0])
    from nbdev.export import nb_export

    nb_export(path, lib_path=package)
    assert flow.check({}, settings) == []


def test_a_library_inside_another_out_of_step_is_told_and_the_one_around_it_is_not(tmp_path):
    root = tmp_path / "w"
    settings = create(root, workspace={"package": "outer.shop"})
    (root / "nbs").mkdir()
    for name, module in (("1_price", "shop.price"), ("2_other", "other")):
        cells = [
            new_code_cell(f"#| default_exp {module}"),
            new_code_cell("", metadata={"tags": ["parameters"]}),
            new_code_cell("#| export\ndef price(): return 3"),
        ]
        nbformat.write(new_notebook(cells=cells), root / "nbs" / f"{name}.ipynb")
    flow = Workflow.discover(root / "nbs")
    [problem] = flow.check({}, settings)
    assert "outer/shop/price.py is not what this notebook exports" in str(problem)
    from nbdev.export import nb_export

    nb_export(root / "nbs" / "1_price.ipynb", lib_path=root / "outer")
    assert flow.check({}, settings) == []


# The lock


def _hold(root: str, held) -> None:
    from mlops_nb.core.settings import load_settings

    with workspace_lock(settings=load_settings(root)) as say:
        say(run="r1")
        held.set()
        time.sleep(60)


def test_the_lock_says_who_holds_it_and_dies_with_its_holder(tmp_path):
    settings = create(tmp_path)
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), held))
    holder.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(WorkflowError, match=rf"process {holder.pid}, since .* UTC, run r1"),
            workspace_lock(settings=settings),
        ):
            pass
    finally:
        holder.kill()
        holder.join()
    with workspace_lock(settings=settings):
        pass


def test_a_look_at_the_lock_keeps_nobody_out(tmp_path):
    "`holder` takes the lock for an instant, shared; a run that starts in that instant starts."
    settings = create(tmp_path)
    with workspace_lock(settings=settings):
        pass
    with (settings.state / "run.lock").open() as look:
        assert try_lock(look, shared=True)
        threading.Timer(0.01, look.close).start()
        with workspace_lock(settings=settings):
            pass


# Kernels, without a cluster


def story(fixture: str, **options) -> tuple[list, dict]:
    nb, last = nbformat.read(NOTEBOOKS / f"{fixture}.ipynb", as_version=4), {}
    steps = []
    env = {
        k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"
    }  # seeing it, ipykernel behaves otherwise
    for what, i, cell in drive(nb, env=env, cwd=str(NOTEBOOKS), **options):
        steps.append((what, i))
        if what in ("output", "done", "failed"):
            last[i] = cell
    return [s for s in steps if s[0] not in ("output", "kernel")], last


def test_a_kernel_is_jupyter_to_the_letter():
    steps, cells = story("semantics")
    assert steps[-1] == ("done", 6)
    assert shown(cells[2], "stdout") == ["one", "three"] and shown(cells[2], "stderr") == ["two"]
    assert cells[3]["outputs"][0]["data"]["text/plain"] == "'after'"
    assert (
        cells[5]["outputs"][0]["data"]["text/plain"] == "42"
        and cells[6]["outputs"][0]["text"] == "magic\n"
    )


@pytest.mark.parametrize(
    ("fixture", "at", "error"),
    [
        ("raises", 3, "ZeroDivisionError"),
        ("killed", 2, "DeadKernelError"),
        ("exits", 2, "DeadKernelError"),
        ("eats_memory", 2, "MemoryError"),
        ("glues_too_much", 2, "WorkflowError"),
        ("hangs", 2, "CellTimeoutError"),
    ],
)
def test_the_cell_that_failed_is_the_last(fixture, at, error):
    steps, cells = story(fixture, timeout=5 if fixture == "hangs" else 60)
    assert steps[-1] == ("failed", at) and cells[at]["outputs"][-1]["ename"] == error


def slow_to_stop(seconds: float) -> str:
    "Code of a cell that never ends, and that takes an interrupt after some seconds only."
    handler = f"def stop(*_):\n    time.sleep({seconds})\n    raise KeyboardInterrupt\n"
    return f"import signal, time\n{handler}signal.signal(signal.SIGINT, stop)\ntime.sleep(60)"


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_what_a_kernel_sends_after_its_cells_time_is_not_in_the_record(monkeypatch, seconds):
    "Ending the kernel interrupts the cell, and its KeyboardInterrupt comes at once or late."
    monkeypatch.setattr(driver, "Recorder", partial(driver.Recorder, every=0))
    nb = new_notebook(cells=[new_code_cell(slow_to_stop(seconds))])
    steps = list(drive(nb, env=dict(os.environ), cwd=".", timeout=1))
    assert steps[-1][:2] == ("failed", 0)
    assert [o["ename"] for o in steps[-1][2]["outputs"]] == ["CellTimeoutError"]
    assert "took longer than 1 s" in steps[-1][2]["outputs"][0]["evalue"]


ENDINGS = [  # code, type, message
    ("%sql select 1", "UsageError", "Line magic function `%sql` not found."),
    ("raise ExceptionGroup('many', [ValueError(1)])", "ExceptionGroup", "many (1 sub-exception)"),
    ("exit()", "SystemExit", "0"),
    ("import sys\nsys.exit(None)", "SystemExit", ""),
    ("import os\nos._exit(3)", "DeadKernelError", "its process exited with status 3"),
    (
        "import os\nos.kill(os.getpid(), 9)",
        "DeadKernelError",
        "killed by SIGKILL (by the system, if memory ran out)",
    ),
    (
        "import os\nos.kill(os.getpid(), 11)",
        "DeadKernelError",
        "ended by SIGSEGV (a crash in compiled code)",
    ),
]


@pytest.mark.parametrize(("code", "kind", "message"), ENDINGS)
def test_a_cell_that_failed_shows_type_and_message(code, kind, message):
    nb = new_notebook(cells=[new_code_cell(code), new_code_cell("'never'")])
    *_, (what, i, cell) = drive(nb, env=dict(os.environ), cwd=".")
    assert (what, i) == ("failed", 0)
    [error] = [o for o in cell["outputs"] if o["output_type"] == "error"]
    assert error["ename"] == kind and message in error["evalue"]


TEXTS = {
    "line": lambda n: ["x" * n],
    "progress": lambda n: ["x" * (n // 2) + "\r" + "y" * (n // 2)],
    "pieces": lambda n: ["x" * 100] * (n // 100),
    "returns": lambda n: ["\r" * n],
    "lines": lambda n: ["a\n" * (n // 2)],
    "states": lambda n: ["12 %\r" * (n // 5) + "\n"],
}


@pytest.mark.parametrize("text", TEXTS)
def test_ten_times_the_output_takes_ten_times_the_work(text):
    def seconds(n: int) -> float:
        cell = new_code_cell("1", outputs=[new_output("stream", text=t) for t in TEXTS[text](n)])
        spent = []
        for _ in range(5):
            start = time.thread_time()
            driver._snapshot(cell)
            spent.append(time.thread_time() - start)
        return min(spent)

    # Work of order n² would take a hundred times as long, whatever else the machine does.
    ratios = (seconds(1_000_000) / max(seconds(100_000), 0.001) for _ in range(3))
    assert any(ratio <= 15 for ratio in ratios)


@given(st.text(alphabet="ab\r\n", max_size=12))
def test_a_line_keeps_its_last_state(text):
    assert driver._last_states(text) == re.sub(r"[^\n]*\r(?=[^\n])", "", text)


def test_long_coloured_texts_are_cut_on_the_page_only():
    from mlops_nb.flow.workflow.publishing import LONGEST_TEXT, _shortened

    nb = new_notebook(
        cells=[new_code_cell("1", outputs=[new_output("stream", text="\x1b[31mx" * LONGEST_TEXT)])]
    )
    [output] = _shortened(nb).cells[0].outputs
    assert (
        len(output.text) < LONGEST_TEXT + 100
        and "1,000,000 characters are left out here" in output.text
    )


def test_a_long_cell_shows_what_it_has_so_far_and_is_ended_with_its_driver():
    nb = nbformat.read(NOTEBOOKS / "hangs.ipynb", as_version=4)
    nb.cells[2].source = "import os\nprint(os.getpid())\n" + nb.cells[2].source
    events_ = drive(nb, env=dict(os.environ), cwd=".")
    pid = next(
        int(c["outputs"][0]["text"].split()[0])
        for what, i, c in events_
        if what == "output" and c["outputs"]
    )
    os.kill(pid, 0)
    events_.close()
    time.sleep(1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_fork_that_does_not_answer_is_replaced(tmp_path, monkeypatch):
    "A fork server that gives a process which is no kernel."
    monkeypatch.setattr(kernels, "FORK_TIMEOUT", 2)
    dumb = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "kernels"))
        listener.listen()

        def answer() -> None:
            lease, _ = listener.accept()
            lease.makefile().readline()
            lease.sendall(f"{dumb.pid}\n".encode())
            leases.append(lease)

        leases: list[socket.socket] = []
        threading.Thread(target=answer, daemon=True).start()
        steps, cells = story("semantics", address=str(tmp_path / "kernels"))
    assert leases and steps[-1] == ("done", 6) and shown(cells[2], "stdout") == ["one", "three"]
    for lease in leases:
        lease.close()
    dumb.kill()
    dumb.wait()


@pytest.mark.parametrize("worse", [False, True])
def test_after_a_cell_that_failed_its_task_is_heard_to_its_end(worse):
    "A task that is cancelled while it ends may be reported as crashed. It changes nothing."
    import papermill  # noqa: F401
    from papermill.engines import NotebookExecutionManager

    from mlops_nb.flow.workflow.engine import follow

    ended = []

    def told():
        yield "start", 0, None
        yield "failed", 0, {"execution_count": 1, "outputs": []}
        ended.append(True)
        if worse:
            raise ConnectionError("the worker is gone")

    cells = [new_code_cell(code, metadata={"papermill": {}}) for code in ("1 / 0", "2")]
    record = NotebookExecutionManager(
        new_notebook(cells=cells, metadata={"papermill": {}}), progress_bar=False
    )
    record.notebook_start()
    follow(told(), record)
    states = [(c.metadata.papermill.status, len(c.outputs)) for c in record.nb.cells]
    assert ended and states == [("failed", 0), ("pending", 0)]


# On the cluster


@pytest.mark.cluster
def test_a_run_is_recorded_then_reused(workspace, tmp_path):
    flow, said = good(tmp_path), []
    run = flow.run(
        {"rows": 4},
        settings=workspace,
        by="alice",
        on_event=lambda p: said.append((p.what, p.stage)),
    )
    assert run.state == "done" and run.outputs == {
        "table": "t@4",
        "made_in": run.id,
        "total": 8,
        "alert": False,
    }
    assert (
        [s.state for s in run.stages] == ["done"] * 3
        and ("cell", "make") in said
        and ("done", "watch") in said
    )
    for stage in run.stages:
        assert (
            read_outputs(stage.notebook) == stage.outputs
            and Path(stage.notebook).with_suffix(".html").exists()
        )
    client = Ledger(workspace).client
    child = client.get_run(run.stages[1].id)
    assert child.data.tags["mlflow.parentRunId"] == run.id and child.data.tags["glued.total"] == "8"
    assert child.data.params == {"table": "t@4"} and child.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(child.info.run_id)} == {
        "2_count.ipynb",
        "2_count.html",
    }
    log = events.history(workspace.events, f"run:{run.id}").collect()
    assert log["kind"].to_list() == ["run_started", "run_finished"] and set(log["by"]) == {"alice"}

    again = flow.run({"rows": 4}, settings=workspace)
    assert [(s.state, s.reused_from) for s in again.stages] == [
        ("reused", run.id),
        ("reused", run.id),
        ("done", None),
    ]
    assert again.outputs == run.outputs and "reused" in again._repr_html_()
    third = flow.run(
        {"rows": 4},
        settings=workspace,
        valid=lambda stage, given: stage != "count",
        last="count",
        resolve=lambda stage, values: "",
    )
    assert [s.state for s in third.stages] == ["reused", "done"]
    fourth = flow.run({"rows": 4, "factor": 30}, settings=workspace, first="count")
    assert [s.name for s in fourth.stages] == ["count", "watch"] and fourth.outputs == {
        "total": 120,
        "alert": True,
    }
    forced = flow.run({"rows": 4}, settings=workspace, force=True, last="make")
    assert forced.stages[0].state == "done" and forced.outputs["made_in"] == forced.id


@pytest.mark.cluster
def test_a_stage_depends_on_the_objective_that_another_glues(workspace, tmp_path):
    give = stage(
        tmp_path, "0_objective", "", "glue('objective', {'name': 'churn', 'margin': 0.01})"
    )
    stage(
        tmp_path,
        "1_train",
        "objective: dict = {'margin': 9}\ntrials = 1",
        "glue('used', objective['margin'])",
    )

    def run(given: dict | None = None, **options):
        done = Workflow.discover(tmp_path).run(given, settings=workspace, **options)
        return [s.state for s in done.stages], done.outputs["used"]

    assert run() == (["done", "done"], 0.01) and run() == (["reused", "reused"], 0.01)
    for first in (None, "train"):
        with pytest.raises(
            WorkflowError, match="`objective` cannot be given: stage objective glues it"
        ):
            run({"objective": {"margin": 5}}, first=first)
    edit(give, "0.01", "0.02")
    assert run(first="train") == (["reused"], 0.01)  # what is left out counts as it last was
    assert run() == (["done", "done"], 0.02) and run({"trials": 2}) == (["reused", "done"], 0.02)


@pytest.fixture(params=["placed", "beside"])
def either(request, workspace, ray_cluster, monkeypatch):
    "A workspace whose stages are driven by Ray tasks, and one that drives beside its local head."
    import papermill  # noqa: F401  first: the engine is its plug-in

    from mlops_nb.flow.workflow import engine

    if request.param == "placed":
        return workspace
    monkeypatch.delenv("MLOPS_NB__CLUSTER__ADDRESS")
    local = load_settings(workspace.root)
    local.state.mkdir(exist_ok=True)
    (local.state / "cluster.json").write_text(json.dumps(asdict(ray_cluster)))
    assert engine._local_head(None, local) and not engine._local_head({"num_cpus": 1}, local)
    return local


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("fixture", "said"),
    [
        ("raises", "cell 4, line 1: ZeroDivisionError"),
        ("killed", "cell 3: DeadKernelError"),
        ("exits", "cell 3: DeadKernelError"),
        ("eats_memory", "cell 3, line 4: MemoryError"),
        ("glues_too_much", "cell 3, line 3: WorkflowError: glue: report is 100,002 characters"),
    ],
)
def test_a_failure_is_told_truthfully(either, tmp_path, fixture, said):
    flow = workflow(tmp_path, _1_make="1_make", _2_fails=fixture, _3_count="2_count")
    workspace = either.model_copy(update={"stage": {"count": StageSection(after="fails")}})
    with pytest.raises(WorkflowError) as e:
        flow.run(settings=workspace)
    run = e.value.run
    assert f"stage fails failed. 2_fails.ipynb, {said}" in str(e.value) and run.stages[
        1
    ].notebook in str(e.value)
    assert [s.state for s in run.stages] == ["done", "failed", "not run"] and run.state == "failed"
    states = status(run.stages[1].notebook)
    assert states[-2:] == ["failed", "pending"] and "completed" in states
    assert Ledger(workspace).client.get_run(run.stages[1].id).info.status == "FAILED"
    newest = events.newest(workspace.events, "run_finished", f"run:{run.id}")["details"]
    assert newest["state"] == "failed"
    assert {s["name"]: s["state"] for s in newest["stages"]} == {
        "make": "done",
        "fails": "failed",
        "count": "not run",
    }

    wrong = {
        "raises": "1 / 0",
        "killed": "os.kill(os.getpid(), 9)",
        "exits": "os._exit(0)",
        "eats_memory": "bytes(16 << 30)",
        "glues_too_much": "* 100_000",
    }[fixture]
    edit(tmp_path / "2_fails.ipynb", wrong, "1" if wrong[0] != "*" else "")
    mended = Workflow.discover(tmp_path).run(settings=workspace)
    assert [s.state for s in mended.stages] == ["reused", "done", "done"]


REASONS = [  # code, what is said of it
    ("%sql select 1", "cell 2: UsageError: Line magic function `%sql` not found."),
    ("x = 1\nassert x > 2", "cell 2, line 2: AssertionError without a message, at `assert x > 2`"),
    (
        "class Odd(Exception): pass\nraise Odd",
        "cell 2, line 2: Odd without a message, at `raise Odd`",
    ),
    (
        "%%bash\nls /nowhere\nexit 3",
        "returned non-zero exit status 3.; last on stderr: ls: cannot access '/nowhere'",
    ),
    (
        "import sys\nprint('no disk', file=sys.stderr)\nsys.exit(1)",
        "SystemExit: 1; last on stderr: no disk",
    ),
    ("import sys\nsys.exit('no data')", "cell 2: SystemExit: no data"),
    (
        "import os, sys, time\nprint('bad', file=sys.stderr, flush=True)\n"
        "time.sleep(1)\nos._exit(3)",
        "cell 2: DeadKernelError: the kernel died while it ran this cell: "
        "its process exited with status 3; "
        "last on stderr: bad",
    ),
]


@pytest.mark.cluster
def test_a_failure_says_its_reason(workspace, tmp_path):
    "Each as a stage of its own, side by side."
    reasons = {}
    for n, (source, reason) in enumerate(REASONS, 1):
        reasons[f"{n}_a"] = reason
        path = stage(tmp_path, f"{n}_a", "", source)
        batch = workflow_map(path, [{}], settings=workspace)
        assert reason in batch.stages[0].error and batch.stages[0].error.startswith(
            f"{n}_a.ipynb, cell 2"
        ), batch
        assert batch.stages[0].state == "failed"


@pytest.mark.cluster
@pytest.mark.parametrize(
    "end", ["import sys\nsys.exit(0)", "import sys\nsys.exit(None)", "raise SystemExit", "exit()"]
)
def test_a_stage_that_ends_itself_has_stopped_and_is_never_reused(workspace, tmp_path, end):
    stage(tmp_path, "1_a", "", "glue('x', 1)", end, "glue('y', 2)")
    stage(tmp_path, "2_b", "x: int", "glue('z', x)")
    lines = []
    run = Workflow.discover(tmp_path).run(
        settings=workspace, on_event=lambda now: lines.append((now.what, now.stage))
    )
    assert [s.state for s in run.stages] == ["stopped", "done"] and run.outputs == {"x": 1, "z": 1}
    assert run.state == "done" and ("stopped", "a") in lines
    assert run.stages[0].note == "cell 3 ended the stage early (sys.exit, status 0)"
    tags = Ledger(workspace).client.get_run(run.stages[0].id).data.tags
    assert tags["mlops_nb.state"] == "stopped" and tags["mlops_nb.note"] == run.stages[0].note
    assert status(run.stages[0].notebook) == ["completed", "completed", "failed", "pending"]
    again = Workflow.discover(tmp_path).run(settings=workspace)
    assert [s.state for s in again.stages] == ["stopped", "reused"]
    later = Workflow.discover(tmp_path).run(settings=workspace, first="b", force=True)
    assert later.outputs == {"z": 1}  # from the stage that stopped


@pytest.mark.cluster
def test_a_stage_that_ends_itself_before_it_gave_what_is_taken_failed(workspace, tmp_path):
    stage(tmp_path, "1_a", "", "import sys\nsys.exit()", "glue('x', 1)")
    stage(tmp_path, "2_b", "x: int", "glue('z', x)")
    for _ in range(2):
        with pytest.raises(
            WorkflowError, match="cell 2 ended the stage early .* without gluing `x`, which b takes"
        ) as e:
            Workflow.discover(tmp_path).run(settings=workspace)
        assert [s.state for s in e.value.run.stages] == ["failed", "not run"]
    with pytest.raises(WorkflowError, match="1_a.ipynb, cell 2: SystemExit: 3"):
        edit(tmp_path / "1_a.ipynb", "sys.exit()", "sys.exit(3)")
        Workflow.discover(tmp_path).run(settings=workspace)


def asking(folder: Path) -> tuple[Path, str]:
    "A file that stands for a person's decision, and a cell that waits until it is there."
    decided = folder / "decided"
    return (
        decided,
        f"""\
from pathlib import Path
from mlops_nb.core.errors import WaitingForPerson
print("asking")
if not Path({str(decided)!r}).exists():
    raise WaitingForPerson("m/1 waits for a person", "mlops-nb approve m/1 --by NAME")
print("decided: " + Path({str(decided)!r}).read_text())""",
    )


@pytest.mark.cluster
def test_a_run_waits_for_a_person_and_goes_on_after_the_decision(either, tmp_path):
    decided, ask = asking(tmp_path)
    stage(tmp_path, "1_a", "", "glue('x', 1)")
    stage(tmp_path, "2_b", "x: int", "glue('half', x)", ask, "glue('y', x)")
    stage(tmp_path, "3_c", "y: int", "glue('z', y)")
    lines = []
    flow, options = Workflow.discover(tmp_path), {"settings": either}
    run = flow.run(on_event=lambda now: lines.append((now.what, now.stage)), **options)
    assert [s.state for s in run.stages] == ["done", "waiting", "not run"]
    assert run.state == "waiting" and ("waiting", "b") in lines and run.outputs["half"] == 1
    [waits] = run.waiting
    assert (waits.note, waits.command) == (
        "m/1 waits for a person",
        "mlops-nb approve m/1 --by NAME",
    )
    assert waits.error is None and "mlops-nb approve m/1" in run._repr_html_()

    nb = nbformat.read(waits.notebook, as_version=4)
    assert status(waits.notebook) == ["completed"] * 3 + ["waiting", "not run"]
    outputs = [o for cell in code(waits.notebook) for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"], "nothing looks like a failure"
    assert outputs[-2].text == "asking\n" and "approve m/1" in outputs[-1].data["text/html"]
    assert not nb.metadata.papermill.exception
    assert "approve m/1" in Path(waits.notebook).with_suffix(".html").read_text()

    ledger = Ledger(either)
    stage_run, whole = (ledger.client.get_run(id_) for id_ in (waits.id, run.id))
    assert stage_run.data.tags["mlops_nb.command"] == waits.command
    assert whole.data.tags["mlops_nb.state"] == "waiting" and whole.info.status == "FINISHED"
    finished = events.newest(either.events, "run_finished", f"run:{run.id}")["details"]
    assert (finished["state"], finished["stages"][1]["command"]) == ("waiting", waits.command)

    assert [s.state for s in flow.run(**options).stages] == ["reused", "waiting", "not run"]
    decided.write_text("yes")
    after = flow.run(**options)
    assert after.state == "done" and [s.state for s in after.stages] == ["reused", "done", "done"]
    assert [s.state for s in flow.run(**options).stages] == ["reused"] * 3


@pytest.mark.cluster
def test_a_failure_beside_a_stage_that_waits_is_the_runs_end(workspace, tmp_path):
    _, ask = asking(tmp_path)
    workspace = workspace.model_copy(
        update={"cluster": workspace.cluster.model_copy(update={"stages": 2})}
    )
    stage(tmp_path, "1_a", "", ask)
    stage(tmp_path, "2_b", "", "import time\ntime.sleep(3)", "1 / 0", "glue('y', 1)")
    stage(tmp_path, "3_c", "y: int", "glue('z', y)")
    with pytest.raises(WorkflowError, match="stage b failed") as e:
        Workflow.discover(tmp_path).run(settings=workspace)
    assert e.value.run.state == "failed"
    assert [s.state for s in e.value.run.stages] == ["waiting", "failed", "not run"]


@pytest.mark.cluster
def test_a_batch_with_a_set_that_waits_has_not_failed(workspace, tmp_path):
    _, ask = asking(tmp_path)
    path = stage(tmp_path, "ask", "n = 0", "if n == 1:\n    " + ask.replace("\n", "\n    "))
    batch = workflow_map(path, [{"n": 0}, {"n": 1}], settings=workspace)
    assert [s.state for s in batch.stages] == ["done", "waiting"]
    assert batch.state == "waiting" and not batch.failed


@pytest.mark.cluster
def test_a_stage_left_out_gives_what_its_last_run_used(workspace, tmp_path):
    "Also if that run reused an older result: the result in between is not the last."
    stage(tmp_path, "1_a", "n = 0", "glue('x', n)")
    stage(tmp_path, "2_b", "x: int", "glue('y', x)")
    flow, options = Workflow.discover(tmp_path), {"settings": workspace}
    for n in (1, 2, 1):
        flow.run({"n": n}, **options)
    assert flow.run(first="b", **options).outputs == {"y": 1}


# By hand


@pytest.fixture
def bench(ray_cluster, tmp_path):
    "A workspace with two stages; the second takes the latest output of the first by hand."
    settings = create(tmp_path / "w")
    settings.notebooks.mkdir()
    stage(settings.notebooks, "1_a", "n = 0", "glue('x', 10 // n)")
    parameters = "from mlops_nb import workflow\n\nx = workflow.latest('x')\nconfirm = False"
    stage(settings.notebooks, "2_b", parameters, "glue('y', [x, confirm])")
    return settings


def by_hand(settings, name: str) -> list:
    "What a notebook shows if a person runs it in a kernel of JupyterLab: its outputs."
    path = settings.notebooks / f"{name}.ipynb"
    env = os.environ | {"JPY_SESSION_NAME": str(path), "MLOPS_NB_WORKSPACE": str(settings.root)}
    nb = nbformat.read(path, as_version=4)
    ends = [c for what, _, c in drive(nb, env=env, cwd=str(path.parent)) if what in STORY_ENDS]
    return [output for cell in ends for output in cell["outputs"]]


STORY_ENDS = ("done", "failed")


@pytest.mark.cluster
def test_the_latest_output_is_of_the_last_run_whose_stage_succeeded(bench, monkeypatch):
    with pytest.raises(WorkflowError, match="expected a run of stage a, .*`mlops-nb run --to a`"):
        latest("x", settings=bench)
    with pytest.raises(WorkflowError, match="'xx', which no stage in .* glues"):
        latest("xx", settings=bench)
    flow = Workflow.discover(bench.notebooks)
    for n, x in ((1, 10), (5, 2), (1, 10)):  # the third reuses the first
        assert flow.run({"n": n}, settings=bench).outputs["y"] == [x, True]
        assert latest("x", settings=bench) == x
    with pytest.raises(WorkflowError, match="ZeroDivisionError"):
        flow.run({"n": 0}, settings=bench)
    assert latest("x", settings=bench) == 10
    monkeypatch.setenv("MLOPS_NB_RUN_ID", "1")
    monkeypatch.setattr(Ledger, "newest", None)
    assert latest("x", settings=bench) == "", "a run looks nothing up"


@pytest.mark.cluster
def test_notebooks_run_by_hand_hand_on_what_they_glue(bench):
    [error] = by_hand(bench, "2_b")
    assert "expected a run of stage a, which gives `x`, got none yet" in error["evalue"]
    edit(bench.notebooks / "1_a.ipynb", "n = 0", "n = 3")
    by_hand(bench, "1_a")
    origin, glued = by_hand(bench, "2_b")
    assert origin["data"]["text/plain"].startswith("x: of 1_a.ipynb, run by hand 2")
    assert glued["data"]["text/plain"] == "y = [3, false]", "nothing is confirmed by hand"
    run = Workflow.discover(bench.notebooks).run({"n": 5}, settings=bench)
    origin, glued = by_hand(bench, "2_b")
    assert f"x: of stage a in run {run.id}" in origin["data"]["text/plain"]
    assert glued["data"]["text/plain"] == "y = [2, false]"
    by_hand(bench, "1_a")
    assert latest("x", settings=bench) == 3, "the newer of the two"


@pytest.mark.cluster
def test_a_table_glued_by_hand_is_a_file(bench):
    cell = "import polars as pl\nglue('t', pl.DataFrame({'a': [1, 2]}))"
    stage(bench.notebooks, "3_c", "", cell)
    by_hand(bench, "3_c")
    assert pl.read_parquet(latest("t", settings=bench))["a"].to_list() == [1, 2]


def test_a_default_for_work_by_hand_is_none_in_a_run(tmp_path):
    path = stage(tmp_path, "2_b", "x = workflow.latest('x')", "glue('y', x)")
    edit(path, "x = workflow", "from mlops_nb import workflow\\nx = workflow")
    [problem] = Workflow.discover(tmp_path).check()
    assert "`x` has a default for work by hand and no stage glues it" in problem.message
    assert Workflow.discover(tmp_path).check({"x": 1}) == []
    stage(tmp_path, "1_a", "", "glue('x', 1)")
    assert Workflow.discover(tmp_path).check() == []


def test_only_the_workflow_confirms(tmp_path):
    stage(tmp_path, "1_a", "confirm = False", "glue('x', confirm)")
    [problem] = Workflow.discover(tmp_path).check({"confirm": False})
    assert "`confirm` cannot be given: the workflow fills it in" in problem.message
    stage(tmp_path, "1_a", "confirm = 'no'", "glue('x', confirm)")
    assert Workflow.discover(tmp_path).check({"confirm": "yes"}) == [], "an ordinary parameter"


@pytest.mark.cluster
def test_warnings_are_with_the_run(workspace, tmp_path):
    path = stage(tmp_path, "1_a", "", "get_ipython().user_ns['y'] = 1", "glue('x', y)")
    shutil.copy(path, tmp_path / "1_a-Copy1.ipynb")
    run = Workflow.discover(tmp_path).run(settings=workspace)
    assert run.outputs == {"x": 1} and "warning: 1_a-Copy1.ipynb: left out" in run._repr_html_()
    recorded = events.newest(workspace.events, "run_started", f"run:{run.id}")["details"][
        "warnings"
    ]
    assert recorded == [str(w) for w in run.warnings] and len(recorded) == 2
    assert "no cell visibly defines `y`; get_ipython() in cell 2 may" in recorded[1]
    assert len(workflow_map(path, [{}], settings=workspace).warnings) == 1


@pytest.mark.cluster
def test_a_stage_left_out_must_have_succeeded_before(workspace, tmp_path):
    with pytest.raises(
        WorkflowError, match="count takes `table` from make, which has not succeeded"
    ):
        good(tmp_path).run(settings=workspace, first="count")


@pytest.mark.cluster
def test_a_stage_that_forgets_an_output_fails(workspace, tmp_path):
    good(tmp_path)
    edit(tmp_path / "1_make.ipynb", "glue('table'", "if rows > 100: glue('table'")
    with pytest.raises(WorkflowError, match="finished without gluing `table`, which count takes"):
        Workflow.discover(tmp_path).run(settings=workspace)


@pytest.mark.cluster
def test_mlflow_in_a_stage_joins_its_run_and_the_code_is_the_snapshot(either, tmp_path):
    workspace = either
    flow = workflow(tmp_path, _1_make="1_make")
    edit(
        tmp_path / "1_make.ipynb",
        "glue('made_in', run_id)",
        "import mlflow, os\\nwith mlflow.start_run() as run: mlflow.log_metric('auc', 0.5)\\n"
        "glue('joined', run.info.run_id)\\nglue('path', os.environ['PYTHONPATH'])\\n"
        "glue('cwd', os.getcwd())",
    )
    flow = Workflow.discover(tmp_path)
    run = flow.run(settings=workspace)
    assert run.outputs["joined"] == run.stages[0].id and run.outputs["cwd"] == str(tmp_path)
    assert run.outputs["path"].startswith(str(workspace.state / "libraries"))
    assert Ledger(workspace).client.get_run(run.stages[0].id).data.metrics["auc"] == 0.5


@pytest.mark.cluster
def test_forked_kernels_are_ready_and_behave(either, tmp_path, monkeypatch):
    flow = workflow(tmp_path, _1_semantics="semantics")
    edit(
        tmp_path / "1_semantics.ipynb",
        "n = 1",
        "n = 1\\nimport sys\\nassert {'ray', 'polars', 'mlflow'} <= set(sys.modules)\\n"
        "assert 'mlops_nb' not in sys.modules",
    )
    with monkeypatch.context() as m:
        m.delenv("PYTEST_CURRENT_TEST")  # seeing it, ipykernel behaves otherwise
        run = Workflow.discover(tmp_path).run(settings=either)
    assert flow.stages[0].name == "semantics" and run.state == "done"
    cells = code(run.stages[0].notebook)
    assert cells[2].outputs[0].data["text/plain"] == "'after'"
    assert shown(cells[1], "stdout") == ["one", "three"]


def test_a_kernel_is_at_home_in_the_notebooks_folder(either, tmp_path):
    (tmp_path / "beside.py").write_text("x = 7")
    stage(
        tmp_path,
        "1_home",
        "",
        "import beside, os, sys\nfrom pathlib import Path\nhere = get_ipython().starting_dir\n"
        "assert _dh == [Path(here)] and here == os.getcwd(), (_dh, here)\n"
        "assert len(sys.argv) == 3, sys.argv\nfrom ipykernel import get_connection_file\n"
        "assert Path(get_connection_file()).exists()\nglue('x', beside.x)",
    )
    assert Workflow.discover(tmp_path).run(settings=either).outputs == {"x": 7}


@pytest.fixture
def stranger(tmp_path):
    """`papermill … --engine ray` in another process, outside any workspace, with a Ray of its own.

    What it leaves in the folder for temporary files is Ray's alone, however it ended."""
    temporary = Path(tempfile.mkdtemp(prefix="t"))  # short, for the sockets in it
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLOPS_NB"))} | {
        "TMPDIR": str(temporary)
    }

    def start(fixture: str | Path) -> subprocess.Popen:
        command = [
            str(Path(sys.executable).parent / "papermill"),
            str(NOTEBOOKS / f"{fixture}.ipynb"),
            "out.ipynb",
            "--engine",
            "ray",
            "--no-progress-bar",
        ]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    try:
        yield start
        wait(lambda: not list(temporary.glob("mlops-nb*")), 20)
        assert {p.name for p in temporary.iterdir()} <= {"ray"}
    finally:
        shutil.rmtree(temporary)


def test_anybody_may_say_papermill_engine_ray(stranger, tmp_path):
    "Whatever moment somebody looks at the executed notebook, it is whole, once it has begun."
    process, looks = stranger("raises"), [""]
    while process.poll() is None and not time.sleep(0.001):
        with suppress(FileNotFoundError):
            if (text := (tmp_path / "out.ipynb").read_text()) != looks[-1]:
                looks.append(text)
    begun = next(
        n
        for n, text in enumerate(looks)
        if re.search('"status": "(running|completed|failed)"', text)
    )
    assert all(map(json.loads, looks[begun:]))
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1 and "ZeroDivisionError" in said
    assert status(tmp_path / "out.ipynb")[-2:] == ["failed", "pending"]


def test_papermill_killed_takes_all_with_it(stranger, tmp_path):
    process = stranger("hangs")
    out = tmp_path / "out.ipynb"
    wait(lambda: out.exists() and status(out)[-2:] == ["running", "pending"], 120)
    process.kill()
    process.communicate()
    assert status(out)[-2:] == ["running", "pending"]


@pytest.mark.cluster
def test_independent_stages_run_side_by_side(workspace, tmp_path):
    meet = (
        "import pathlib, time\npathlib.Path({!r}).touch()\n"
        "while not pathlib.Path({!r}).exists(): time.sleep(0.05)"
    )
    stage(tmp_path, "1_a", "", meet.format("a", "b") + "\nglue('x', 1)")
    stage(tmp_path, "2_b", "", meet.format("b", "a") + "\nglue('y', 2)")
    stage(tmp_path, "3_c", "x: int\ny: int", "glue('z', x + y)")
    settings = workspace.model_copy(
        update={"cluster": workspace.cluster.model_copy(update={"stages": 2})}
    )
    run = Workflow.discover(tmp_path).run(settings=settings)
    assert run.outputs == {"x": 1, "y": 2, "z": 3} and "href" in run._repr_html_()


@pytest.mark.cluster
def test_a_stage_is_tried_again_and_ended_when_its_time_is_over(either, tmp_path):
    workspace = either
    stage(
        tmp_path,
        "1_flaky",
        "",
        "import pathlib\nn = len(list(pathlib.Path().glob('try*')))\n"
        "pathlib.Path(f'try{n}').touch()\nif n < 2: raise OSError('busy')\nglue('n', n)",
    )
    section = StageSection(retries=3, retry_wait=0.01)
    run = Workflow.discover(tmp_path).run(
        settings=workspace.model_copy(update={"stage": {"flaky": section}})
    )
    assert run.outputs == {"n": 2} and run.stages[0].attempts == 3
    kept = Ledger(workspace).client.list_artifacts(run.stages[0].id)
    assert {"attempt1", "attempt2", "1_flaky.ipynb"} <= {a.path for a in kept}
    stage(tmp_path, "2_slow", "", "1 + 1", "import time\ntime.sleep(60)", "3")
    slow = workspace.model_copy(update={"stage": {"slow": StageSection(timeout=4)}})
    with pytest.raises(
        WorkflowError, match="2_slow.ipynb, cell 3: CellTimeoutError: the notebook took longer"
    ) as e:
        Workflow.discover(tmp_path).run(settings=slow, first="slow")
    assert status(e.value.run.stages[0].notebook) == ["completed", "completed", "failed", "pending"]
    greedy = workspace.model_copy(update={"stage": {"slow": StageSection(num_cpus=999)}})
    with pytest.raises(WorkflowError, match="no node of the cluster has that"):
        Workflow.discover(tmp_path).run(settings=greedy, first="slow")


@pytest.mark.cluster
def test_tables_figures_and_rich_outputs_are_kept_and_handed_on(workspace, tmp_path):
    stage(
        tmp_path,
        "1_give",
        "",
        "import polars as pl, matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\n"
        "glue('table', pl.DataFrame({'n': [1, 2]}))\nglue('figure', figure)\nplt.close()",
        "import logging\nlogging.getLogger('mine').warning('logged')\n"
        "view = {'application/vnd.jupyter.widget-view+json': {'model_id': '0'}}\n"
        "display({**view, 'text/plain': 'a slider'}, raw=True)\n"
        "pl.DataFrame({'n': [1, 2]})",
        "import sys\nfrom tqdm import tqdm\n"
        "for _ in tqdm(range(50), file=sys.stderr, mininterval=0): pass",
    )
    stage(
        tmp_path,
        "2_take",
        "table: str\nfigure: str",
        "import polars as pl\nglue('n', int(pl.read_parquet(table)['n'].sum()))\n"
        "glue('png', open(figure, 'rb').read(4)[1:].decode())",
    )
    run = Workflow.discover(tmp_path).run(settings=workspace)
    assert (
        run.outputs["n"] == 3
        and run.outputs["png"] == "PNG"
        and Path(run.outputs["table"]).is_file()
    )
    assert read_outputs(run.stages[0].notebook)["table"].to_dict(as_series=False) == {"n": [1, 2]}
    bar = "".join(
        o.text for o in code(run.stages[0].notebook)[-1].outputs if o.output_type == "stream"
    )
    page = Path(run.stages[0].notebook).with_suffix(".html").read_text()
    log, slider, table = code(run.stages[0].notebook)[-2].outputs
    assert (
        log.text == "logged\n"
        and slider.data["text/plain"] == "a slider"
        and "<table" in table.data["text/html"]
    )
    assert "a slider" in page and "logged" in page and "data:image/png;base64" in page
    assert "50/50" in bar and "\r" not in bar and bar.count("%") == 1
    Path(run.outputs["table"]).unlink()
    again = Workflow.discover(tmp_path).run(settings=workspace)
    assert [s.state for s in again.stages] == ["done", "done"]  # what was lost is made again


@pytest.mark.cluster
def test_outputs_may_be_many_and_a_stage_is_given_what_it_hands_on(workspace, tmp_path):
    "A stage gives more outputs than MLflow's server takes in one call."
    stage(tmp_path, "1_hand", "total = 1", "glue('total', total + 1)")
    stage(
        tmp_path,
        "2_many",
        "total: int",
        "\n".join(f"glue('x{n}', total + {n})" for n in range(120)),
    )
    flow = Workflow.discover(tmp_path)
    run = flow.run({"total": 3}, settings=workspace)
    assert run.outputs["total"] == 4 and run.outputs["x119"] == 123
    assert [s.state for s in flow.run({"total": 3}, settings=workspace).stages] == ["reused"] * 2
    assert len(Ledger(workspace).newest(stage="many").outputs) == 120


@pytest.mark.cluster
def test_a_batch_repeats_only_what_failed(workspace, tmp_path):
    path = stage(
        tmp_path,
        "square",
        "n: int",
        "import pathlib\nif n == 3 and not pathlib.Path('go').exists(): raise ValueError(n)\n"
        "glue('square', n * n)\nimport polars as pl\nglue('table', pl.DataFrame({'n': [n]}))",
    )
    sets = [{"n": n} for n in range(5)]
    batch = workflow_map(path, sets, settings=workspace, at_once=2)
    assert [s.state for s in batch.failed] == ["failed"] and batch.state == "failed"
    assert (
        batch.table["square"].to_list() == [0, 1, 4, None, 16]
        and "ValueError: 3" in batch.table["error"][3]
    )
    assert [pl.read_parquet(s.outputs["table"])["n"].item() for s in batch.stages if s.outputs] == [
        0,
        1,
        2,
        4,
    ]
    (tmp_path / "go").touch()
    again = workflow_map(path, sets, settings=workspace)
    assert [s.state for s in again.stages] == ["reused"] * 3 + [
        "done",
        "reused",
    ] and "1 done" in again._repr_html_()
    moved = workflow_map(
        path, sets[:1], settings=workspace, resolve=lambda stage, given: "another source"
    )
    assert moved.stages[0].state == "done"
    with pytest.raises(WorkflowError, match="set 1, 2: square.ipynb, cell 1: `n` is"):
        workflow_map(path, [{"n": "a"}, {"n": "a"}, {"n": 1}], settings=workspace)


@pytest.mark.cluster
def test_a_value_of_the_wrong_type_from_another_stage_fails_before_its_cells(workspace, tmp_path):
    stage(tmp_path, "1_give", "", "glue('n', 'many')")
    stage(tmp_path, "2_take", "n: int", "glue('m', n)")
    with pytest.raises(WorkflowError, match="2_take.ipynb: TypeError: `n` is 'many', expected int"):
        Workflow.discover(tmp_path).run(settings=workspace)


# Killed from outside


def processes(session: int, named: str) -> list[psutil.Process]:
    "Processes of the session's Ray head with this in their command line."
    return [
        p
        for p in psutil.process_iter(["cmdline"])
        if named in " ".join(p.info["cmdline"] or []) and os.getsid(p.pid) == session
    ]


def hanging(folder: Path) -> Workflow:
    "A workflow whose only stage writes its kernel's process id into a file and then hangs."
    shutil.copy(NOTEBOOKS / "hangs.ipynb", folder / "1_hangs.ipynb")
    edit(
        folder / "1_hangs.ipynb",
        "import time",
        "import os, time\\nopen('pid', 'w').write(str(os.getpid()))",
    )
    return Workflow.discover(folder)


def wait(true, seconds: float = 60):
    "Wait until something is so, and give it."
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.2)
    return found


def kernel(folder: Path) -> int:
    return int(wait(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), 120))


@pytest.mark.chaos
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("either", "victim", "error"),
    [
        ("placed", "ray::execute_task", "WorkerCrashedError"),
        ("placed", "runpy.run_path", "DeadKernelError"),
        ("beside", "runpy.run_path", "DeadKernelError"),
    ],
    indirect=["either"],
)
def test_whoever_is_killed_the_record_is_true(either, ray_cluster, tmp_path, victim, error):
    "The Ray worker that drives the cells, or the fork server that the kernel came from."
    workspace = either

    def kill() -> None:
        kernel(tmp_path)
        for p in processes(ray_cluster.session, victim):
            p.kill()

    def listen(now) -> None:
        if now.cell == 3:
            threading.Thread(target=kill, daemon=True).start()

    flow = hanging(tmp_path)
    with pytest.raises(WorkflowError, match=rf"1_hangs.ipynb, cell 3: {error}") as e:
        flow.run(settings=workspace, on_event=listen)
    assert status(e.value.run.stages[0].notebook)[-2:] == ["failed", "pending"]
    wait(lambda: not psutil.pid_exists(kernel(tmp_path)))
    edit(tmp_path / "1_hangs.ipynb", "seconds = 600", "seconds = 1")
    assert Workflow.discover(tmp_path).run(settings=workspace).state == "done"


@pytest.mark.chaos
@pytest.mark.cluster
def test_a_killed_run_leaves_no_lock_and_no_kernel(either, tmp_path):
    workspace = either
    hanging(tmp_path)
    run = f"from mlops_nb.flow.workflow import Workflow; Workflow.discover({str(tmp_path)!r}).run()"
    runner = subprocess.Popen([sys.executable, "-c", run], cwd=workspace.root)
    pid = kernel(tmp_path)
    with (
        pytest.raises(WorkflowError, match=rf"process {runner.pid}, .*run "),
        workspace_lock(settings=workspace),
    ):
        pass
    [notebook] = Path(workspace.runs).rglob("*.ipynb")
    wait(
        lambda: "running" in status(notebook)
    )  # a cell that starts is told and saved some milliseconds later
    runner.kill()
    runner.wait()
    wait(lambda: not psutil.pid_exists(pid))
    with workspace_lock(settings=workspace):
        pass
    assert status(notebook)[-2:] == ["running", "pending"]


@pytest.mark.chaos
@pytest.mark.cluster
def test_a_driver_killed_at_any_moment_loses_and_doubles_nothing(workspace, tmp_path, round_):
    "Three stages each write a line to a file. The run is killed, and the next one finishes."
    for n in range(3):
        stage(
            tmp_path,
            f"{n}_s{n}",
            f"x{n}: int" if n else "",
            f"import pathlib\nwith open('log', 'a') as f: f.write('{n}\\n')\n"
            f"glue('x{n + 1}', {n + 1})",
        )
    run = f"from mlops_nb.flow.workflow import Workflow; Workflow.discover({str(tmp_path)!r}).run()"
    runner = subprocess.Popen(
        [sys.executable, "-c", run], cwd=workspace.root, stderr=subprocess.DEVNULL
    )
    time.sleep(random.Random(round_).uniform(2, 16))
    runner.kill()
    runner.wait()
    log = lambda: (tmp_path / "log").read_text().split() if (tmp_path / "log").exists() else []
    finished = {s.stage for s in finished_stages(workspace)}
    run = Workflow.discover(tmp_path).run(settings=workspace)
    assert run.outputs == {"x1": 1, "x2": 2, "x3": 3}
    assert {s.name for s in run.stages if s.state == "reused"} == finished
    for n in range(3):  # a stage that had finished ran once, the one that was killed at most twice
        assert 1 <= log().count(str(n)) <= (1 if f"s{n}" in finished else 2)


def finished_stages(settings) -> list:
    from types import SimpleNamespace

    ledger = Ledger(settings)
    found = ledger.client.search_runs([ledger.experiment], "tags.`mlops_nb.state` = 'done'")
    return [
        SimpleNamespace(stage=r.data.tags["mlops_nb.stage"])
        for r in found
        if "mlops_nb.stage" in r.data.tags
    ]


@pytest.mark.cluster
def test_a_run_has_one_state_of_the_code(ray_cluster, tmp_path):
    "What is edited during a run: the package counts from the next run on, a notebook ends the run."
    settings = create(tmp_path / "w", workspace={"package": "shop"})
    prices = settings.root / "shop" / "prices.py"
    prices.parent.mkdir()
    prices.write_text("FACTOR = 1")
    change = (
        "from pathlib import Path\nPath(file).write_text(Path(file).read_text().replace(*texts))"
    )
    stage(
        settings.root,
        "1_edit",
        "file = ''\ntexts: list = []",
        "from shop import prices",
        change,
        "glue('edited', texts)",
    )
    use = stage(
        settings.root,
        "2_use",
        "edited: list = []",
        "from shop import prices",
        "glue('used', prices.FACTOR * 10)",
    )

    def run(file, *texts):
        done = Workflow.discover(settings.root).run(
            {"file": str(file), "texts": list(texts)}, settings=settings
        )
        return [s.state for s in done.stages], done.outputs["used"]

    assert run(prices, "= 1", "= 2") == (["done", "done"], 10)
    assert run(prices, "= 2", "= 3") == (["done", "done"], 20)
    with pytest.raises(
        WorkflowError, match=r"2_use.ipynb: WorkflowError: the notebook was edited .*run again"
    ):
        run(use, "* 10", "* 11")
    assert run(use, "* 10", "* 11") == (["reused", "done"], 33)
