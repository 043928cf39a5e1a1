"The library reads easily: its figures keep their bounds, names are plain, and notebooks teach."

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import readability

import mlops_nb

ROOT = Path(__file__).parent.parent
NOTEBOOKS = readability.notebooks()
EACH = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: f"{n.parent.name}/{n.stem}")
# Names that say nothing of what they hold.
VAGUE = set("found said came told known asked made seen again gone stuff thing things".split())


@pytest.mark.parametrize("figure", readability.figures(), ids=lambda f: f[0])
def test_the_figures_keep_their_bounds(figure):
    name, value, sense, bound = figure
    assert readability.holds(figure), f"{name}: expected {sense} {bound}, got {value:.2f}"


def test_compound_lines_are_recognised():
    long = "x" * 80
    assert list(readability.compounds(f"if {long}: y = 1")) == [f"if {long}: y = 1"]
    assert list(readability.compounds(f"a = 1; b = '{long}'")) == [f"a = 1; b = '{long}'"]
    assert not list(readability.compounds(f"if {long}:\n    y = 1\nf(lambda: {long})"))


def test_functions_are_measured_without_their_docstrings():
    cell = 'def f(x):\n    """Return it,\n    twice."""\n    return  x +\\\n        x\n'
    assert list(readability.functions(cell)) == [(len("return x +\\ x"), 3, "f")]


def definitions() -> dict[str, list[str]]:
    "Return the modules that define each public name of the library."
    homes = defaultdict(list)
    for file in sorted(ROOT.glob("mlops_nb/*/**/*.py")):
        if "churn" in file.parts:
            continue
        for node in ast.parse(file.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            for name in {n for n in names if not n.startswith("_")}:
                homes[name].append(str(file.relative_to(ROOT)))
    return homes


def test_a_public_name_has_one_meaning():
    assert not {name: files for name, files in definitions().items() if len(files) > 1}


def test_the_package_offers_at_most_25_names():
    assert len(mlops_nb.__all__) <= 25
    assert all(getattr(mlops_nb, name).__doc__ for name in mlops_nb.__all__)


def bound_names(tree: ast.AST) -> set[str]:
    "Return the names that code binds: variables, parameters, functions, keys of `as`."
    names = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    names |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    return names | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


@EACH
def test_a_notebook_exports_at_most_400_lines(notebook):
    "What outgrows that is several modules."
    cells = readability.code_cells(notebook)
    assert sum(len(cell.splitlines()) for cell in cells) <= 400  # blank lines too


@EACH
def test_names_say_what_they_hold(notebook):
    names = {
        name for cell in readability.code_cells(notebook) for name in bound_names(ast.parse(cell))
    }
    assert not names & VAGUE


@EACH
def test_public_functions_describe_their_parameters(notebook):
    "A comment on at least one parameter, the form that nbdev calls docments."
    bare = []
    for cell in readability.code_cells(notebook):
        lines = cell.splitlines()
        for node in ast.parse(cell).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name[0] == "_":
                continue
            signature = "\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            if arguments and not re.search(r"#\s*\w", signature):
                bare.append(node.name)
    assert not bare


def is_test(node: ast.stmt) -> bool:
    "Return whether a statement only checks something."
    called = node.value if isinstance(node, ast.Expr) else None
    if isinstance(node, ast.With):
        called = node.items[0].context_expr
    name = getattr(getattr(called, "func", None), "id", "")
    return isinstance(node, ast.Assert) or name.startswith("test_") or name == "expect_fail"


def lessons(notebook: Path) -> list[dict]:
    "Return the cells that a reader sees and that are not exported."
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    directives = r"^#\|\s*(export|exporti|hide|default_exp)\b"
    return [c for c in cells if not re.search(directives, "".join(c["source"]), re.M)]


@EACH
def test_no_lesson_is_only_a_test(notebook):
    def only_tests(source: str) -> bool:
        code = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M)
        return bool(code.strip()) and all(map(is_test, ast.parse(code).body))

    assert not [c["id"] for c in lessons(notebook) if only_tests("".join(c["source"]))]


@EACH
def test_prose_stands_between_exported_cells(notebook):
    "At most three exported cells in a row."
    row = 0
    for cell in json.loads(notebook.read_text())["cells"]:
        exported = re.search(r"^#\|\s*export", "".join(cell["source"]), re.M)
        row = row + 1 if cell["cell_type"] == "code" and exported else 0
        assert row <= 3, cell["id"]
