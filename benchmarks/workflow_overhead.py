"""Five empty stages in a row: ours on a running cluster against Metaflow's local run.

Timed from the shell prompt to the shell prompt. Each of ours is a notebook with a kernel of its
own, executed and kept; each of Metaflow's is a process. Forced, so that nothing is reused. Also
printed: plain papermill, one notebook after the other, and ZenML (where it can be installed).
"""

import statistics
import sys
from pathlib import Path

from harness import finish, notebook, options, peer_times, run, workspace

FLOW = """
from metaflow import FlowSpec, step
class Five(FlowSpec):
    @step
    def start(self): self.next(self.b)
    @step
    def b(self): self.next(self.c)
    @step
    def c(self): self.next(self.d)
    @step
    def d(self): self.next(self.end)
    @step
    def end(self): pass
if __name__ == "__main__": Five()
"""
ZEN = """
from zenml import pipeline, step
@step(enable_cache=False)
def a() -> int: return 0
@step(enable_cache=False)
def b(x: int) -> int: return x
@pipeline
def five(): b(b(b(b(a()))))
five()
"""


def stages(folder: Path) -> None:
    "Five notebooks, each taking what the one before gives."
    for n in range(5):
        notebook(
            folder / f"{n}_stage{n}.ipynb",
            f"out{n - 1}: int" if n else "",
            f"from mlops_nb import glue\nglue('out{n}', {n})",
        )


def ours(home: Path, times: int) -> float:
    command = [Path(sys.executable).parent / "mlops-nb", "run", "--force", "--workspace", home]
    run(command)  # the first one starts what stays
    return statistics.median(run(command).seconds for _ in range(times))


def plain(home: Path) -> float:
    "papermill as it comes, a process a notebook."
    papermill = [Path(sys.executable).parent / "papermill", "--no-progress-bar", "-k", "python3"]
    return sum(
        run(
            [*papermill, nb, home / "out.ipynb", *(["-p", f"out{n - 1}", "0"] if n else [])]
        ).seconds
        for n, nb in enumerate(sorted((home / "nbs").glob("*.ipynb")))
    )


def theirs(
    packages: list[str], code: str, folder: Path, times: int, *arguments: str, **env: str
) -> float:
    folder.mkdir()
    (folder / "flow.py").write_text(code)
    return statistics.median(
        peer_times(packages, ["flow.py", *arguments], times, cwd=folder, env=env)
    )


def main() -> None:
    asked = options(__doc__, leaves_out="papermill and ZenML, and four of five runs")
    times = 1 if asked.quick else 5
    with workspace() as home:
        stages(home / "nbs")
        mine = ours(home, times)
        other = {} if asked.quick else {"papermill": plain(home)}
        metaflow = theirs(["metaflow"], FLOW, home / "metaflow", times, "run", USERNAME="bench")
        if not asked.quick:
            try:
                other["zenml"] = theirs(
                    ["zenml[local]"],
                    ZEN,
                    home / "zenml",
                    1,
                    ZENML_CONFIG_PATH=str(home / "zenml"),
                    ZENML_ANALYTICS_OPT_IN="false",
                )
            except SystemExit as e:
                other["zenml"] = f"not measured: {str(e)[-200:]}"
    finish(
        "workflow_overhead",
        mine / metaflow,
        1.0,
        asked=asked,
        ours_s=mine,
        metaflow_s=metaflow,
        **{f"{k}_s": v for k, v in other.items()},
    )


if __name__ == "__main__":
    main()
