"""Drift of 1M rows × 10 mixed columns against as many: profile both and score, against Evidently.

Evidently's data drift preset runs in an environment of its own; both may use all cores. Data is in
memory before the clock starts, as polars frames for us and as pandas frames for Evidently, and
imports are not timed. Identifiers and moments are left out for Evidently (it has no test for them),
not for us. One column has moved by a twentieth of its standard deviation. The median of three runs
of ours, one run of Evidently's after a small one. `--quick`: 200,000 rows.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import harness

ROWS = 1_000_000
CATEGORIES = ["boolean", "category", "city"]
NOT_TESTED = ["identifier", "moment"]


def ours(target: str, reference: str) -> dict:
    "Time of two profiles and their comparison, s; and the columns that drifted."
    import polars as pl

    from mlops_nb.data.profiles.comparison import drift
    from mlops_nb.data.profiles.profiling import profile

    frames = [pl.read_parquet(f) for f in (target, reference)]
    drift(*(profile(f[:1000]) for f in frames))
    compare = lambda: drift(*(profile(f) for f in frames))
    return {"seconds": harness.seconds(compare, 3), "drifted": compare().drifted}


def evidently(target: str, reference: str) -> dict:
    "Time of the data drift preset, s."
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    frames = [pd.read_parquet(f).drop(columns=NOT_TESTED) for f in (target, reference)]
    numbers = [c for c in frames[0].columns if c not in CATEGORIES]
    known = DataDefinition(numerical_columns=numbers, categorical_columns=CATEGORIES)

    def compare(rows: int | None = None) -> None:
        Report([DataDriftPreset()]).run(
            *(Dataset.from_pandas(f[:rows], data_definition=known) for f in frames)
        ).dict()

    compare(1000)
    began = time.perf_counter()
    compare()
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    asked = harness.options(__doc__, leaves_out="four fifths of the rows")
    rows = ROWS // 5 if asked.quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "target.parquet", Path(folder) / "reference.parquet"]
        for seed, file in enumerate(files):
            harness.table(rows, seed, 0.05 * (seed == 0)).write_parquet(file)
        us = harness.run([sys.executable, __file__, "ours", *files])
        them = harness.run(
            [
                *harness.peer("evidently==0.7.23", "pandas<3", "pyarrow"),
                __file__,
                "evidently",
                *files,
            ]
        )
    a, b = (json.loads(timed.out.splitlines()[-1]) for timed in (us, them))
    harness.finish(
        "drift",
        b["seconds"] / a["seconds"],
        30,
        asked=asked,
        higher=True,
        drifted=", ".join(a["drifted"]),
        **{"ours, s": a["seconds"], "Evidently, s": b["seconds"], "ours, peak MiB": round(us.peak)},
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "evidently"):
        print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
