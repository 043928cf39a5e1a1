"""100M rows in 100 Parquet files profiled on Ray: rows a second, linear in rows, memory bounded.

The cluster is this machine, started and ended here. The ratio is the time of all files to that of a
tenth of them, both after the workers have imported what they need. Memory: the greatest resident
size of any worker, sampled ten times a second, for all files and for a tenth of them; a worker
holds one batch of a million rows. `--quick`: 10M rows in 10 files.
"""

import tempfile
import threading
import time
from pathlib import Path

import harness

ROWS = 1_000_000  # a file


def write(folder: Path, files: int) -> list[Path]:
    "Files with nine of the ten columns of profile.py's table and an identifier of their own."
    import polars as pl

    base, made = harness.table(ROWS).drop("identifier"), []
    for i in range(files):
        made.append(folder / f"{i}.parquet")
        other = base.with_columns(
            pl.col("float") + i / files,
            pl.col("wide integer") + i,
            identifier=pl.format("id-{}-{}", pl.lit(i), pl.int_range(pl.len())),
        )
        other.write_parquet(made[-1], compression="lz4")
    return made


class Watch(threading.Thread):
    "Greatest resident size of any Ray worker, MiB."

    def __init__(self, session: int):
        super().__init__(daemon=True)
        self.session, self.peak, self.ended = session, 0.0, threading.Event()

    def run(self) -> None:
        import psutil

        from mlops_nb.core import head

        while not self.ended.wait(0.1):
            for process in head.session_processes(self.session):
                try:
                    if process.name().startswith("ray::"):
                        self.peak = max(self.peak, process.memory_info().rss / 2**20)
                except psutil.Error:
                    continue


def timed(files: list[Path], settings, session: int) -> tuple[float, float, int]:
    "Seconds, greatest size of a worker in MiB, rows."
    from mlops_nb.data.profiles import profile_files

    watch = Watch(session)
    watch.start()
    began = time.perf_counter()
    rows = profile_files(files, settings=settings).rows
    taken = time.perf_counter() - began
    watch.ended.set()
    watch.join()
    return taken, watch.peak, rows


def main() -> None:
    import socket

    from mlops_nb.core import cluster
    from mlops_nb.core.settings import create

    asked = harness.options(__doc__, leaves_out="90 of 100 files")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = create(Path(folder) / "workspace", serve={"port": port})
        files = write(Path(folder), 10 if asked.quick else 100)
        disk = sum(f.stat().st_size for f in files) / 2**30
        try:
            session = cluster.up(settings).session
            timed(files[:2], settings, session)
            tenth, small, _ = timed(files[: len(files) // 10], settings, session)
            whole, great, rows = timed(files, settings, session)
        finally:
            cluster.down(settings)
    harness.finish(
        "profile_scale",
        whole / tenth,
        11,
        asked=asked,
        rows=rows,
        **{
            "on disk, GiB": disk,
            "all files, s": whole,
            "a tenth, s": tenth,
            "rows a second": round(rows / whole),
            "worker, all files, MiB": round(great),
            "worker, a tenth, MiB": round(small),
        },
    )


if __name__ == "__main__":
    main()
