"""The churn workflow as notebooks against the same calls in one plain Python script.

The script is the code of the eight stage notebooks in one process, in their order, with what one
glues as the parameter of the next: no kernels, no executed notebooks, no pages of them, no record
of a run. Each runs in a workspace of its own whose cluster and pages are up already, whole
processes, from data to a live endpoint and a look at it (--quick: 4 trials instead of 24).
"""

import json
import shutil
import sys
from pathlib import Path

from harness import ROOT, finish, options, run, workspace

HEAD = """
import os
from mlops_nb.core import cluster
from mlops_nb.core.settings import load_settings
cluster.connect(load_settings())
given, glued = {given}, {{}}
import mlops_nb
mlops_nb.glue = glued.__setitem__
def parameters(scope): scope.update({{k: v for k, v in {{**glued, **given}}.items() if k in scope}})
"""


def script(notebooks: Path, given: dict) -> str:
    "The stages' code as one program, each in a scope of its own."
    parts = [HEAD.format(given=given)]
    for path in sorted(notebooks.glob("[0-9]*.ipynb")):
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        first = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
        rest = "\n".join("".join(c["source"]) for c in cells if c is not first).replace(
            "features=features", "features='mlops_nb.churn.train.features'"
        )  # no kernel to ask
        parts.append(
            f"scope = {{'__name__': {path.stem!r}}}\nexec({''.join(first['source'])!r}, scope)\n"
            f"parameters(scope)\nexec({rest!r}, scope)"
        )
    return "\n".join(parts)


def prepared(home: Path) -> Path:
    "The reference workflow in a workspace that is up."
    for name in ("nbs", "data", "mlops_nb"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.lock", home)
    with (home / "settings.ini").open("a") as ini:
        ini.write("[workspace]\nnotebooks = nbs/churn\npackage = mlops_nb.churn\n")
    run([Path(sys.executable).parent / "mlops-nb", "up", "--workspace", home])
    return home


def main() -> None:
    asked = options(__doc__, leaves_out="20 of 24 trials")
    given = {"trials": 4 if asked.quick else 24}
    with workspace() as home:
        options_ = [
            part for name, value in given.items() for part in ("-p", f"{name}={json.dumps(value)}")
        ]
        mine = run(
            [Path(sys.executable).parent / "mlops-nb", "run", "-w", prepared(home), *options_]
        ).seconds
    with workspace() as home:
        (prepared(home) / "plain.py").write_text(script(home / "nbs" / "churn", given))
        plain = run([sys.executable, "plain.py"], cwd=home, env={"MPLBACKEND": "agg"}).seconds
    finish(
        "notebook_tax",
        mine / plain,
        1.15,
        asked=asked,
        ours_s=mine,
        script_s=plain,
        trials=given["trials"],
    )


if __name__ == "__main__":
    main()
