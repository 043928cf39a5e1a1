"""From a CSV file of 5,000 rows to a live, monitored endpoint: `init`, then `run` and `simulate`.

The table has twenty columns and two labels that depend on some of them. The workspace is as `init`
writes it. `run` and `simulate` together have 120 s; what `init` takes is printed beside. Afterwards
at least 100 predictions are logged, and monitoring has given one verdict. There is no peer: none
takes a file to an endpoint. `--quick`: 500 rows and three trials.
"""

import os
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import polars as pl

ROWS, LIMIT = 5000, 120.0  # s
NUMBERS, CATEGORIES = 12, 7


def orders(rows: int) -> pl.DataFrame:
    "Orders of a shop, about a quarter of which are returned."
    rng = np.random.default_rng(1)
    numbers = rng.gamma(2.0, 20.0, (rows, NUMBERS)).round(2)
    kinds = rng.integers(0, 5, (rows, CATEGORIES))
    drive = numbers[:, 0] / 40 - numbers[:, 1] / 40 + (kinds[:, 0] == 1) - 1.6
    returned = rng.random(rows) < 1 / (1 + np.exp(-drive))
    columns = {f"amount {i}": numbers[:, i] for i in range(NUMBERS)}
    columns |= {f"kind {i}": [f"k{k}" for k in kinds[:, i]] for i in range(CATEGORIES)}
    labels = np.where(returned, "yes", "no")
    return pl.DataFrame({"order_id": [f"A{i:06}" for i in range(rows)], **columns}).with_columns(
        returned=labels
    )


def main() -> None:
    asked = harness.options(__doc__, leaves_out="5,000 rows with all trials")
    rows = 500 if asked.quick else ROWS
    program = Path(sys.executable).parent / "mlops-nb"
    env = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        orders(rows).write_csv(Path(folder) / "orders.csv")

        def timed(*words: str, cwd: Path = Path(folder)) -> float:
            return harness.run([program, *words], env=env, cwd=cwd).seconds

        seconds = {"init, s": timed("init", "shop", "--source", "orders.csv")}
        shop = Path(folder) / "shop"
        try:
            fewer = ["-p", "trials=3"] if asked.quick else []
            seconds["run, s"] = timed("run", *fewer, cwd=shop)
            seconds["simulate, s"] = timed("simulate", cwd=shop)
        finally:
            timed("down", cwd=shop)
    total = seconds["run, s"] + seconds["simulate, s"]
    results = [harness.Result.absolute("first endpoint", total, LIMIT)]
    harness.report(results, asked=asked, rows=rows, **seconds)


if __name__ == "__main__":
    main()
