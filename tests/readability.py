"""How easily the exported library reads: each figure with its bound.

`python tests/readability.py [--notebooks]` prints them. A function's body and length are counted
without its docstring. A line is counted without what indents it; blank lines, comments and what
nbdev writes itself are left out.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parent.parent
BLOCKS = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.match_case,
)
Figure = tuple[str, float, str, float]  # what, its value, "<=" or ">=", the bound


def code_cells(notebook: Path) -> Iterator[str]:
    "Yield the code of each exported cell, without nbdev's directives."
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and re.search(r"^#\|\s*exporti?\b", source, re.M):
            yield re.sub(r"^#\|.*\n?", "", source, flags=re.M)


def prose_words(notebook: Path) -> int:
    "Return the number of words in a notebook's Markdown cells."
    cells = json.loads(notebook.read_text())["cells"]
    return sum(len("".join(c["source"]).split()) for c in cells if c["cell_type"] == "markdown")


def functions(cell: str) -> Iterator[tuple[int, int, str]]:
    "Yield the characters, the lines and the name of each function in a cell, inner ones too."
    lines = cell.splitlines()
    for node in ast.walk(ast.parse(cell)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        documented = ast.get_docstring(node, clean=False) is not None
        docstring = first.end_lineno - first.lineno + 1 if documented else 0
        body = node.body[1:] if documented else node.body
        text = "\n".join(lines[body[0].lineno - 1 : body[-1].end_lineno]) if body else ""
        length = node.end_lineno - node.lineno + 1 - docstring
        yield len(re.sub(r"\s+", " ", text).strip()), length, node.name


def compounds(cell: str, longest: int = 80) -> Iterator[str]:
    "Yield each line longer than this that holds a statement and its block, or two statements."
    lines = cell.splitlines()
    for node in ast.walk(ast.parse(cell)):
        for block in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, block, None)
            if not isinstance(inner, list) or not inner or not hasattr(inner[0], "lineno"):
                continue
            starts = [n.lineno for n in inner]
            ends = [node.lineno] if isinstance(node, BLOCKS) and hasattr(node, "lineno") else []
            ends += [n.end_lineno for n in inner[:-1]]
            begun = starts if ends and len(ends) == len(starts) else starts[1:]
            for start, end in zip(begun, ends, strict=False):
                if start == end and len(lines[start - 1]) > longest:
                    yield lines[start - 1]


def notebooks() -> list[Path]:
    "Return the library's notebooks, in the order of reading."
    return sorted((ROOT / "nbs").glob("[0-9]*_*/*.ipynb"))


def exported_lines(notebook: Path) -> list[str]:
    "Return the lines of a notebook's exported code that are not blank."
    lines = [line for cell in code_cells(notebook) for line in cell.splitlines()]
    return [line for line in lines if line.strip()]


def density(notebook: Path) -> float:
    "Return the words of prose a line of exported code."
    return prose_words(notebook) / max(len(exported_lines(notebook)), 1)


def figures(chosen: list[Path] | None = None) -> list[Figure]:
    "Return every figure of some notebooks, or of the library's, with its bound."
    chosen = chosen or notebooks()
    cells = [cell for notebook in chosen for cell in code_cells(notebook)]
    measured = [f for cell in cells for f in functions(cell)]
    lines = [line for notebook in chosen for line in exported_lines(notebook)]
    code = [line.strip() for line in lines if not line.strip().startswith("#")]
    lengths = sorted(length for _, length, _ in measured) or [0]
    words = sum(prose_words(n) for n in chosen)
    return [
        ("median function body, characters", median([b for b, _, _ in measured] or [0]), "<=", 190),
        ("90 % of functions, lines", lengths[int(len(lengths) * 0.9)], "<=", 20),
        ("longest function, lines", lengths[-1], "<=", 40),
        ("mean line, characters", mean(map(len, code or [""])), "<=", 48),
        ("lines over 100 characters", sum(len(line) > 100 for line in lines), "<=", 0),
        ("compound lines over 80", sum(1 for c in cells for _ in compounds(c)), "<=", 0),
        ("words of prose a line of export", words / max(len(lines), 1), ">=", 2.5),
        ("the same, least of all notebooks", min(map(density, chosen)), ">=", 1.5),
    ]


def holds(figure: Figure) -> bool:
    "Return whether a figure keeps its bound."
    _, value, sense, bound = figure
    return value <= bound if sense == "<=" else value >= bound


def main(arguments: list[str]) -> int:
    "Print the figures, of the library or of each notebook. Return 1 if one breaks its bound."
    if "--notebooks" in arguments:
        for notebook in notebooks():
            values = "  ".join(f"{value:7.2f}" for _, value, _, _ in figures([notebook])[:-1])
            print(values, notebook.relative_to(ROOT))
        return 0
    for figure in figures():
        name, value, sense, bound = figure
        print(f"{name:36} {value:8.2f} {sense} {bound:g}{'' if holds(figure) else '  MISSED'}")
    return int(not all(map(holds, figures())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
