"""What the benchmarks share: options, timed processes, peers' environments, lines of the targets.

A script runs us and the peer side by side on this machine, each peer in an environment of its own.
It prints what it measured, then a line a target, `NAME ratio R target >=T` or
`NAME ratio R target <=T`; the last line is the worst of them, the one with the least margin. A
target without a peer is the measured figure over the figure it has to keep to, with T = 1
(`Result.absolute`). With `--quick`, the first line says what is left out. The JSON form (`--json`)
has every target and whether it holds, and every figure.
"""

import argparse
import compileall
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

sys.path.append(sys.path.pop(0))  # Python's own `profile` before the benchmark of that name
ROOT = Path(__file__).resolve().parents[1]
UV = shutil.which(
    "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)


def options(
    text: str,  # what the benchmark measures
    *,
    leaves_out: str = "",  # what it does not measure with `--quick`
) -> argparse.Namespace:  # quick, json, leaves_out
    "The command line of a benchmark."
    compileall.compile_dir(ROOT / "mlops_nb", quiet=1)  # as the peers' environments are
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"under a minute; leaves out {leaves_out or 'nothing'}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(leaves_out=leaves_out)
    return parser.parse_args()


@dataclass(frozen=True)
class Timed:
    "How a process went."

    seconds: float  # wall clock
    peak: float  # greatest resident memory of the process itself, MiB
    out: str  # its standard output


def run(
    command: list[str], *, env: dict[str, str] | None = None, cwd: str | Path | None = None
) -> Timed:
    "Run a command to its end and time it; raises with its last words if it fails."
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(c) for c in command],
        env=os.environ | (env or {}),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:4]))} … failed:\n{out[-3000:]}")
    return Timed(time.perf_counter() - began, usage.ru_maxrss / 1024, out)


def peer(*packages: str) -> list[str]:
    """A Python with these packages only, as the start of a command.

    Its environment lasts as long as the process.
    """
    asked = [option for package in packages for option in ("--with", package)]
    start = [
        UV,
        "run",
        "--quiet",
        "--no-project",
        "--isolated",
        "--compile-bytecode",
        "--python",
        sys.executable,
    ]
    return [*start, *asked, "python"]


_TIMES = """
import json, subprocess, sys, time
times = []
for _ in range(int(sys.argv[1]) + 1):
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *sys.argv[2:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode: sys.exit(done.stdout[-3000:])
    times.append(time.perf_counter() - began)
print(json.dumps(times[1:]))
"""


def peer_times(packages: list[str], arguments: list[str], times: int, **where) -> list[float]:
    "Seconds of each run of `python ARGUMENTS` in a peer's environment, after one that warms up."
    return json.loads(
        run([*peer(*packages), "-c", _TIMES, str(times), *arguments], **where).out.splitlines()[-1]
    )


def notebook(path: Path, parameters: str, *code: str) -> None:
    "Write a notebook: a cell tagged `parameters`, and others."
    from nbformat import write
    from nbformat.v4 import new_code_cell, new_notebook

    cells = [
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, code),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    write(
        new_notebook(
            cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
        ),
        path,
    )


def table(rows: int, seed: int = 0, shift: float = 0.0):
    "Ten columns, as in a customer table."
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)
    cities = np.array([f"city {i}" for i in range(5000)])
    return pl.DataFrame(
        {
            "float": rng.normal(shift, 1, rows),
            "float, a tenth null": pl.select(
                pl.when(pl.Series(rng.random(rows) > 0.1)).then(pl.Series(rng.exponential(9, rows)))
            ).to_series(),
            "float32": rng.normal(size=rows).astype(np.float32),
            "wide integer": rng.integers(0, 10**12, rows),
            "narrow integer": rng.integers(0, 73, rows).astype(np.int32),
            "boolean": rng.random(rows) < 0.3,
            "category": rng.choice(["DSL", "Fiber optic", "No"], rows),
            "city": cities[rng.integers(0, 5000, rows)],
            "identifier": [f"id-{seed}-{i}" for i in range(rows)],
            "moment": pl.Series(rng.integers(0, 10**9, rows) * 10**6).cast(pl.Datetime("us")),
        }
    )


def seconds(call, repeats: int) -> float:
    "Median time of a call."
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return median(taken)


@contextmanager
def workspace() -> Iterator[Path]:
    "A workspace of its own in a temporary folder, its cluster up as long as it is needed."
    from mlops_nb.core import cluster
    from mlops_nb.core.settings import create

    with TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings = create(folder, serve={"port": free.getsockname()[1]})
        free.close()
        cluster.up(settings)
        try:
            yield settings.root
        finally:
            cluster.down(settings)


@dataclass(frozen=True)
class Result:
    "One target, and what was measured for it."

    name: str
    ratio: float  # ours to the peer's, or the peer's to ours
    target: float
    higher: bool = False  # a higher ratio is the better one

    @classmethod
    def absolute(cls, name: str, value: float, limit: float, *, higher: bool = False) -> "Result":
        "A target without a peer: the ratio of a figure to its limit."
        return cls(name, value / limit, 1.0, higher)

    @property
    def holds(self) -> bool:
        "Is the target met?"
        return self.ratio >= self.target if self.higher else self.ratio <= self.target

    @property
    def margin(self) -> float:
        "How far the ratio is on the right side of the target, as a factor; below 1 it is missed."
        better, worse = (self.ratio, self.target) if self.higher else (self.target, self.ratio)
        return better / worse if worse else float("inf")

    def __str__(self) -> str:
        return (
            f"{self.name} ratio {self.ratio:.3f} "
            f"target {'>=' if self.higher else '<='}{self.target:g}"
        )


def report(results: list[Result], *, asked: argparse.Namespace, **facts) -> None:
    "Print what was measured, then a line a target, the worst last."
    ranked = sorted(results, key=lambda result: -result.margin)
    if asked.json:
        targets = [
            {
                "name": r.name,
                "ratio": r.ratio,
                "target": r.target,
                "holds": r.holds,
                "better": "higher" if r.higher else "lower",
            }
            for r in ranked
        ]
        left = asked.leaves_out if asked.quick else None
        print(
            json.dumps(
                {"quick": asked.quick, "leaves_out": left, "targets": targets, "facts": facts},
                indent=2,
            )
        )
        return
    if asked.quick:
        print(f"--quick leaves out {asked.leaves_out or 'nothing'}")
    for fact, value in facts.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{fact.replace('_', ' '):>28}  {shown}")
    print(*ranked, sep="\n")


def finish(
    name: str,
    ratio: float,
    target: float,
    *,
    asked: argparse.Namespace,
    higher: bool = False,
    **facts,
) -> None:
    "Report the only target of a benchmark."
    report([Result(name, ratio, target, higher)], asked=asked, **facts)
