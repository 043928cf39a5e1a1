"Workspaces of small tables, one of each task, written from plans that were made by hand."

from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from mlops_nb import __version__
from mlops_nb.data.inference import infer
from mlops_nb.front.starter.building import export_workspace
from mlops_nb.front.starter.plan import Choices, Finding, Proposal, Roles, WorkspacePlan
from mlops_nb.front.starter.workspace import write_workspace

TASKS = ("binary", "multiclass", "regression")
ODD = 'width "W" | (mm)'  # a column whose name has a meaning in Python, Markdown and HTML
METRICS = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "mae"}
RULES = {
    "binary": 'pl.col("length")',
    "multiclass": 'pl.when(pl.col("length") > 6).then(pl.lit("old")).otherwise(pl.lit("new"))',
    "regression": 'pl.col("length") * 2',
}


@cache
def table(task: str) -> pl.DataFrame:
    "Return 400 boats; the target goes with their length."
    rng = np.random.default_rng(0)
    length = rng.normal(6, 1, 400).round(3)
    noisy = length + rng.normal(0, 0.8, 400)
    targets = {
        "binary": np.where(noisy > 6.5, "yes", "no"),
        "multiclass": np.select([noisy < 5.5, noisy < 6.5], ["new", "used"], "old"),
        "regression": (noisy * 2).round(3),
    }
    columns = {
        "target": targets[task],
        "length": length,
        ODD: rng.integers(1, 90, 400),
        "hull": rng.choice(["wood", "steel", "plastic"], 400),
        "receipt": rng.integers(1, 9, 400),
    }
    return pl.DataFrame(columns)


def boats_plan(task: str, file: Path, **changes) -> WorkspacePlan:
    "Return a plan for the table of a task, which is written to a file."
    rows = table(task)
    rows.write_csv(file)
    label = {"label": "old"} if task == "multiclass" else {}
    hypothesis = {"name": "length", "statement": "Length matters.", "column": "length", **label}
    fields = {
        "name": "boats",
        "package": "boats",
        "choices": Choices(source=str(file), target="target"),
        "source": f"data/{file.name}",
        "fingerprint": "0123456789abcdef",
        "copied": {f"data/{file.name}": str(file)},
        "rows": rows.height,
        "roles": Roles(
            target="target",
            positive="yes" if task == "binary" else None,
            task=task,
            metric=METRICS[task],
            ignore={"receipt": "it is written after the sale"},
            protected=("hull",),
        ),
        "approval": "rule",
        "port": 8100,
        "contract": infer(rows),
        "findings": [
            Finding(column=name, read_as=str(dtype), role="feature", because="it may matter")
            for name, dtype in rows.schema.items()
        ],
        "warnings": ("The table has only 400 rows.",),
        "hypotheses": [
            Proposal(
                name="length",
                statement="Length matters.",
                code=f"Hypothesis({', '.join(f'{k}={v!r}' for k, v in hypothesis.items())})",
            )
        ],
        "rule": Proposal(
            name="by length",
            statement="Length decides.",
            code=f'Rule(name="by length", expression={RULES[task]})',
        ),
        "strongest": "length",
        "framework": __version__,
    }
    return WorkspacePlan(**fields | changes)


def make(task: str, folder: Path, **changes) -> Path:
    "Write and export a workspace of a task's table. Return its folder."
    workspace = folder / "boats"
    workspace.mkdir(parents=True)
    write_workspace(boats_plan(task, folder / "boats.csv", **changes), workspace)
    export_workspace(workspace)
    return workspace
