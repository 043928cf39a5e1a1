"""Many parameterizations of a notebook that computes for 0.2 s, each in a process of its own: `mlops-nb batch` on a running
cluster against papermill, one after another in one process (its kernels are processes of their own too)."""
import json
import sys
import tempfile
from pathlib import Path

from harness import finish, notebook, options, run

from mlops_nb import cluster
from mlops_nb.settings import create

WORK = """import time
until = time.process_time() + 0.2
while time.process_time() < until: pass
n * n"""
PAPERMILL = """import sys, papermill
for n in range(int(sys.argv[1])):
    papermill.execute_notebook("work.ipynb", f"out{n}.ipynb", {"n": n}, kernel_name="python3", progress_bar=False)"""


def main() -> None:
    asked = options(__doc__)
    number = 12 if asked.quick else 40
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        settings = create(home, serve={"port": 18774})
        notebook(home / "work.ipynb", "n: int = 0", WORK)
        (home / "grid.json").write_text(json.dumps([{"n": n} for n in range(number)]))
        command = [Path(sys.executable).parent / "mlops-nb", "batch", "work.ipynb", "--grid", "grid.json", "--force",
                   "--workspace", home]
        (home / "one.json").write_text('[{"n": 0}]')
        cluster.up(settings)
        try:
            run([*command[:4], "one.json", *command[5:]], cwd=home)  # the first one starts what stays
            ours = run(command, cwd=home).seconds
        finally: cluster.down(settings)
        theirs = run([sys.executable, "-c", PAPERMILL, str(number)], cwd=home).seconds
    finish("batch", ours / theirs, 0.3, asked=asked, notebooks=number, ours_s=ours, papermill_s=theirs)


if __name__ == "__main__": main()
