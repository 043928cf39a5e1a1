"""Stand-ins for the parts of `init` around its flow: small, and with their interfaces.

`python tests/starter_stand_ins.py init …` is the command with them.
"""

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat

from mlops_nb.core.settings import create
from mlops_nb.data.contracts import Contract
from mlops_nb.data.sources import Source
from mlops_nb.front.starter import decisions, tables, workspace
from mlops_nb.front.starter.plan import Answer, Finding, InitError, Proposal, Question, Roles

RELEASE = "MLOPS_NB_TEST_RELEASE"  # environment variable: what the workspace's text depends on
KILL = "MLOPS_NB_TEST_KILL"  # environment variable: where the process gets a signal
SIGNAL = "MLOPS_NB_TEST_SIGNAL"  # environment variable: which one; default: kill -9


POINTS = (
    *("look", "half"),
    *("export_workspace", "workspace_problems", "commit_workspace", "move_into_place"),
)  # where it may be


def look(source: str, *, root: Path = Path(), **_):
    "Look at a table: its columns and its files."
    die_at("look")
    parts = Source(source, root=root)
    frame = parts.scan().collect()
    files = tuple(Path(root) / p.origin for p in parts.parts()) if parts.kind == "files" else ()
    return SimpleNamespace(
        uri=source, address=source, root=root, files=files, sample=frame, rows=frame.height
    )


def decide(table, choices):
    "Decide about a table: the last column is the target; a column `late` is asked about."
    if choices.target and choices.target not in table.sample.columns:
        raise InitError(f"there is no column {choices.target!r}")
    target = choices.target or table.sample.columns[-1]
    names = [name for name in table.sample.columns if name != target]
    undecided = [
        n for n in names if n.startswith("late") and n not in choices.ignore + choices.keep
    ]
    questions = tuple(question(name) for name in undecided)
    return SimpleNamespace(
        roles=Roles(
            target=target,
            task="binary",
            metric="roc_auc",
            ignore={c: "as you say" for c in choices.ignore},
        ),
        approval="rule",
        findings=tuple(
            Finding(column=n, read_as="text", role="feature", because="it is one") for n in names
        ),
        questions=questions,
        warnings=("[the] only warning",),
        units={},
        hypotheses=(),
        rule=Proposal(name="r", statement="s", code="c"),
        strongest=None,
        contract=Contract(columns={n: {"dtype": "string"} for n in names}),
        address=table.address,
    )


def question(name: str) -> Question:
    "Ask whether a column is known."
    answers = [("no: leave it out", "ignore"), ("yes: keep it", "keep")]
    flags = [Answer(text=text, flag=f"--{flag} '{name}'") for text, flag in answers]
    return Question(column=name, text=f"Is {name} known?", answers=tuple(flags))


def write_workspace(plan, folder: Path, *, copy: bool = True) -> None:
    "Write a small workspace: two stages."
    release = os.environ.get(RELEASE, "1")
    create(
        folder, workspace={"name": plan.name, "package": plan.package}, serve={"port": plan.port}
    )
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{plan.name}"\nversion = "0.1.0"\n[tool.nbdev]\n'
        f'lib_path = "{plan.package}"\n'
        'nbs_path = "nbs"\nallowed_cell_metadata_keys = ["tags"]\n'
    )
    (folder / ".gitignore").write_text("__pycache__/\n.mlops_nb/\nstorage/\n")
    (folder / "README.md").write_text(f"# {plan.name}, release {release}\n")
    (folder / f"only-{release}.txt").write_text("\n")
    (folder / "init.json").write_text(plan.model_dump_json(indent=1))
    for place, original in plan.copied.items() if copy else ():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, folder / place)
    (folder / "nbs").mkdir()
    stage(folder / "nbs" / "1_ingest.ipynb", "ingest", f"SOURCE = {plan.source!r}", release)
    die_at("half")
    stage(
        folder / "nbs" / "2_train.ipynb",
        "train",
        f"IGNORE = {list(plan.choices.ignore)!r}",
        release,
    )


def stage(file: Path, name: str, code: str, release: str) -> None:
    "Write a stage notebook."
    cells = {
        "title": nbformat.v4.new_markdown_cell(f"# {name}, release {release}"),
        "module": nbformat.v4.new_code_cell(f"#| default_exp {name}"),
        "parameters": nbformat.v4.new_code_cell("rows = 1", metadata={"tags": ["parameters"]}),
        "code": nbformat.v4.new_code_cell(f"#| export\n{code}"),
        "last": nbformat.v4.new_code_cell("rows + 1"),
    }
    if release != "1":
        cells["more"] = nbformat.v4.new_code_cell("rows + 2")
    for id, cell in cells.items():
        cell.id = f"{name}-{id}"
    notebook = nbformat.v4.new_notebook(cells=list(cells.values()))
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "language": "python",
        "display_name": "python3",
    }
    nbformat.write(notebook, file)


def die_at(point: str) -> None:
    "Send this process a signal if it is to get one here."
    if os.environ.get(KILL) == point:
        os.kill(os.getpid(), int(os.environ.get(SIGNAL, signal.SIGKILL)))
        time.sleep(10)  # until the signal is handled


def install() -> None:
    "Take the place of the functions."
    decisions.decide_about = decide
    tables.look = look
    workspace.write_workspace = write_workspace


def die_in(module, name: str) -> None:
    "Make a function of a module kill its process instead."
    original = getattr(module, name)

    def killed(*words, **options):
        die_at(name)
        return original(*words, **options)

    setattr(module, name, killed)


if __name__ == "__main__":
    install()
    from mlops_nb.front.cli import run_cli
    from mlops_nb.front.starter import building

    for name in POINTS[2:]:
        die_in(building, name)
    run_cli()
