"""A first look at a CSV file of 10 MB, 100 MB and 1 GB: `starter.tables.look`, in time and memory.

The files have ten mixed columns: floats, integers, a boolean, categories, a city of 5,000, an
identifier, times. Each look runs in a process of its own, whose imports are not timed. The limits
are 2 s, 5 s and 20 s, and 1.5 GB of resident memory at 1 GB, imports with it. The processor time is
printed beside, since it does not depend on what else the machine does. The peer is pandas, on the
100 MB: `read_csv`, `describe(include="all")`, `nunique()` and `duplicated()`, which is less than
what the look tells. `--quick`: no file of 1 GB, and no peer.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import harness

ROWS = 80_000  # of 10 MB
LIMITS = {"10 MB": (1, 2.0), "100 MB": (10, 5.0), "1 GB": (100, 20.0)}  # times the rows, s
MEMORY = 1536  # MiB


def measure(file: str) -> dict:
    "Seconds and processor seconds of one look."
    from mlops_nb.front.starter.tables import look

    began, processor = time.perf_counter(), time.process_time()
    table = look(file, progress=False)
    used = time.process_time() - processor
    return {"seconds": time.perf_counter() - began, "processor": used, "rows": table.rows}


PANDAS = """
import json, sys, time
import pandas as pd
began, processor = time.perf_counter(), time.process_time()
frame = pd.read_csv(sys.argv[1])
frame.describe(include="all"), frame.nunique(), frame.duplicated().sum()
used = time.process_time() - processor
print(json.dumps({"seconds": time.perf_counter() - began, "processor": used, "rows": len(frame)}))
"""


def write(file: Path, times: int) -> None:
    "Write a table of `times` times the rows of 10 MB, a piece at a time."
    with file.open("wb") as stream:
        for piece in range(times):
            harness.table(ROWS, seed=piece).write_csv(stream, include_header=not piece)


def main() -> None:
    asked = harness.options(__doc__, leaves_out="the file of 1 GB, and pandas")
    results, facts = [], {}

    def add(name: str, timed: harness.Timed) -> dict:
        measured = json.loads(timed.out.splitlines()[-1])
        facts[f"{name}, s"] = measured["seconds"]
        facts[f"{name}, processor s"] = measured["processor"]
        facts[f"{name}, peak MiB"] = round(timed.peak)
        return measured

    with tempfile.TemporaryDirectory() as folder:
        for name, (times, limit) in LIMITS.items():
            if asked.quick and name == "1 GB":
                continue
            file = Path(folder) / "table.csv"
            write(file, times)
            facts[f"{name}, bytes"] = file.stat().st_size
            timed = harness.run([sys.executable, __file__, "look", file])
            ours = add(name, timed)
            results.append(harness.Result.absolute(f"look {name}", ours["seconds"], limit))
            if name == "1 GB":
                results.append(harness.Result.absolute("look memory", timed.peak, MEMORY))
            if name == "100 MB" and not asked.quick:
                command = [*harness.peer("pandas"), "-c", PANDAS, file]
                theirs = add("100 MB, pandas", harness.run(command))
                ratio = theirs["seconds"] / ours["seconds"]
                results.append(harness.Result("look against pandas", ratio, 1, higher=True))
    harness.report(results, asked=asked, **facts)


if __name__ == "__main__":
    if sys.argv[1:2] == ["look"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
