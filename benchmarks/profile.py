"""Profiles of 1M rows × 10 mixed columns: `profiles.profile` against whylogs' own `why.log`.

Each runs in a process of its own, on all cores that it can use (why.log uses one); data is in
memory before the clock starts, as a polars frame for us and as a pandas frame for why.log, and
imports are not timed. why.log works on NumPy 2 only with `np.unicode_` put back, which is done
here. Medians of three runs; then each column alone. (why.log sees moments one Python object after
another and needs most of its time for them: the ratio is given without, too.) Peak memory is the
process's own, its data and imports with it. `--quick`: 200,000 rows.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import harness

ROWS = 1_000_000


def measure(who: str, file: str) -> dict:
    "Time of the whole table and of each column, s; run in a process of its own."
    os.environ["WHYLOGS_NO_ANALYTICS"] = "True"
    if who == "ours":
        import polars as pl

        from mlops_nb.data.profiles.profiling import profile

        frame = pl.read_parquet(file)
    else:
        import numpy as np
        import pandas as pd

        np.unicode_ = np.str_
        import whylogs

        profile = lambda part: whylogs.log(part).view()
        frame = pd.read_parquet(file)
    profile(frame[:1000])
    whole = harness.seconds(lambda: profile(frame), 3)
    return {
        "whole": whole,
        "columns": {c: harness.seconds(lambda c=c: profile(frame[[c]]), 3) for c in frame.columns},
    }


def main() -> None:
    asked = harness.options(__doc__, leaves_out="four fifths of the rows")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.parquet"
        harness.table(ROWS // 5 if asked.quick else ROWS).write_parquet(file)
        run = lambda who, **env: harness.run([sys.executable, __file__, who, file], env=env)
        ran = {
            "ours": run("ours"),
            "one thread": run("ours", POLARS_MAX_THREADS="1"),
            "why.log": run("why.log"),
        }
    found = {who: json.loads(timed.out.splitlines()[-1]) for who, timed in ran.items()}
    facts = {f"{who}, s": f["whole"] for who, f in found.items()}
    facts |= {f"{who}, peak MiB": round(timed.peak) for who, timed in ran.items()}
    facts["peak memory ratio"] = ran["ours"].peak / ran["why.log"].peak
    facts["ratio on one thread"] = found["why.log"]["whole"] / found["one thread"]["whole"]
    rest = {who: f["whole"] - f["columns"]["moment"] for who, f in found.items() if who != "ours"}
    facts["ratio without moments, on one thread"] = rest["why.log"] / rest["one thread"]
    facts |= {
        f"ratio, {c}": theirs / found["ours"]["columns"][c]
        for c, theirs in found["why.log"]["columns"].items()
    }
    harness.finish(
        "profile",
        found["why.log"]["whole"] / found["ours"]["whole"],
        10,
        asked=asked,
        higher=True,
        **facts,
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "why.log"):
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()
