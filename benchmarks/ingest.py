"""A CSV of 2 GB, 17M rows × 10 columns, ingested: `ingest` against polars' `scan_csv` → Delta.

Ours infers and enforces a contract, finds doubled keys, splits, fingerprints and profiles every
row, and takes the file's SHA-256; bare polars parses and writes. Each in a process of its own on
all cores, imports not timed; the file is read once before, so that both find it in the page cache.
Then ours again with twice the rows, for its memory: greatest resident size of the process, with its
imports. `--quick`: 0.25 GB.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import harness

PIECES = 17  # of a million rows


def write(file: Path, pieces: int, rows: int) -> None:
    "Pieces of profile.py's table, each with identifiers of its own."
    with open(file, "wb") as out:
        for piece in range(pieces):
            harness.table(rows, piece).write_csv(out, include_header=piece == 0)


def ours(file: str, folder: str) -> dict:
    "Time of an ingest, s."
    import polars as pl

    from mlops_nb.core.settings import create
    from mlops_nb.data.ingest import ingest
    from mlops_nb.data.profiles.profiling import profile

    settings = create(folder)
    profile(pl.DataFrame({"a": [1.0]}))  # imports whylogs
    began = time.perf_counter()
    version = ingest("rows", file, key="identifier", settings=settings)
    return {"seconds": time.perf_counter() - began, "rows": version.facts["rows"]}


def bare(file: str, folder: str) -> dict:
    "Time of polars alone, s."
    import deltalake  # noqa: F401
    import polars as pl

    began = time.perf_counter()
    pl.scan_csv(file, try_parse_dates=True).sink_delta(folder)
    return {"seconds": time.perf_counter() - began}


def measured(who: str, file: Path) -> tuple[dict, float]:
    "What a process measured, and its peak memory, MiB."
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        timed = harness.run([sys.executable, __file__, who, file, Path(folder) / "made"])
    return json.loads(timed.out.splitlines()[-1]), timed.peak


def main() -> None:
    asked = harness.options(__doc__, leaves_out="15 of 17 million rows")
    pieces, rows = (2, 1_000_000) if asked.quick else (PIECES, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        write(file, pieces, rows)
        size = file.stat().st_size / 2**30
        them, their_peak = measured("bare", file)
        us, peak = measured("ours", file)
        write(file, 2 * pieces, rows)
        twice, twice_peak = measured("ours", file)
    harness.finish(
        "ingest",
        us["seconds"] / them["seconds"],
        3,
        asked=asked,
        rows=us["rows"],
        **{
            "CSV, GiB": size,
            "ours, s": us["seconds"],
            "polars, s": them["seconds"],
            "ours, twice the rows, s": twice["seconds"],
            "ours, peak MiB": round(peak),
            "ours, twice the rows, peak MiB": round(twice_peak),
            "polars, peak MiB": round(their_peak),
            "peak at twice the rows": twice_peak / peak,
        },
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("ours", "bare"):
        print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
