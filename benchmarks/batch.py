"""Many parameterizations of a short notebook: `mlops-nb batch` against papermill.

The notebook computes for 0.2 s, each time in a process of its own. Ours is on a running cluster;
papermill runs one after another in one process (its kernels are processes of their own too).
"""

import json
import sys
from pathlib import Path

from harness import finish, notebook, options, run, workspace

WORK = """import time
until = time.process_time() + 0.2
while time.process_time() < until: pass
n * n"""
PAPERMILL = """import sys, papermill
for n in range(int(sys.argv[1])):
    papermill.execute_notebook(
        "work.ipynb", f"out{n}.ipynb", {"n": n}, kernel_name="python3", progress_bar=False
    )"""


def main() -> None:
    asked = options(__doc__, leaves_out="28 of 40 notebooks")
    number = 12 if asked.quick else 40
    with workspace() as home:
        notebook(home / "work.ipynb", "n: int = 0", WORK)
        (home / "one.json").write_text('[{"n": 0}]')
        (home / "grid.json").write_text(json.dumps([{"n": n} for n in range(number)]))
        batch = [
            Path(sys.executable).parent / "mlops-nb",
            "batch",
            "work.ipynb",
            "--force",
            "--workspace",
            home,
            "--grid",
        ]
        run([*batch, "one.json"], cwd=home)  # the first one starts what stays
        ours = run([*batch, "grid.json"], cwd=home).seconds
        theirs = run([sys.executable, "-c", PAPERMILL, str(number)], cwd=home).seconds
    finish(
        "batch", ours / theirs, 0.3, asked=asked, notebooks=number, ours_s=ours, papermill_s=theirs
    )


if __name__ == "__main__":
    main()
