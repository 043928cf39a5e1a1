"""Seven stages with heavy imports: our run against plain papermill (nbclient).

They import ray, polars, scikit-learn, mlflow and deltalake. Both sides are whole processes on a
machine where what stays is up: ours on a running cluster, papermill seven times.
"""

import statistics
import sys
from pathlib import Path

from harness import finish, notebook, options, run, workspace

IMPORTS = "import ray, polars, sklearn.linear_model, mlflow, deltalake"


def stages(folder: Path, number: int) -> None:
    "Notebooks that import and give the next one a number."
    for n in range(number):
        notebook(
            folder / f"{n}_stage{n}.ipynb",
            f"out{n - 1}: int" if n else "",
            IMPORTS,
            f"from mlops_nb import glue\nglue('out{n}', {n})",
        )


def main() -> None:
    asked = options(__doc__, leaves_out="four of seven stages, and two of three runs")
    number, times = (3, 1) if asked.quick else (7, 3)
    bin = Path(sys.executable).parent
    with workspace() as home:
        stages(home / "nbs", number)
        command = [bin / "mlops-nb", "run", "--force", "--workspace", home]
        run(command)  # the first one starts what stays
        ours = statistics.median(run(command).seconds for _ in range(times))
        plain = [bin / "papermill", "--no-progress-bar", "-k", "python3"]
        theirs = sum(
            run(
                [
                    *plain,
                    home / "nbs" / f"{n}_stage{n}.ipynb",
                    home / "out.ipynb",
                    *(["-p", f"out{n - 1}", "0"] if n else []),
                ]
            ).seconds
            for n in range(number)
        )
    finish(
        "stage_start",
        ours / theirs,
        0.25,
        asked=asked,
        stages=number,
        ours_s=ours,
        papermill_s=theirs,
    )


if __name__ == "__main__":
    main()
