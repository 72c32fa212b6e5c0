"""What scale costs: starting units on Ray, labelling ten thousand to a million rows, a plan on paper.

``python -m benchmarks.scale launch`` trains the same units by the plain loop and by Ray, turn about;
``label`` labels ever more rows with a tiny model and watches memory; ``plan`` reckons 100 million rows from
the rates of ``gpu_training.md``. Each prints its table. Cores are shared, so read ratios.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np

from data.console.command import format_table

TEXT_RECIPE = """
teachers:
  tiny:
    backbone:
      precision: fp32
      tiny: {family: llama, hidden_size: 64, intermediate_size: 64, layers: 1, heads: 2, kv_heads: 1,
             vocab_size: 300, pretrain_steps: 0}
    lora: {r: 4}
    encode: {max_length: 64}
    train: {epochs: 1, lr: 1.0e-3, rows_per_step: 32}
"""
WORDS = np.array(
    [
        "red",
        "blue",
        "green",
        "loud",
        "quiet",
        "fast",
        "slow",
        "warm",
        "cold",
        "bright",
        "dark",
        "sweet",
        "sour",
    ]
)


FOLDS = 4


def measured(command: list[str], **env: str) -> tuple[float, float, float]:
    """Run a command of the project: seconds, CPU seconds and peak MiB of it and its children."""
    program = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:];\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "u = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('USED', u.ru_utime + u.ru_stime, u.ru_maxrss / 1024)"
    )
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    used = next(line for line in done.stdout.splitlines() if line.startswith("USED")).split()
    return time.perf_counter() - begin, float(used[1]), float(used[2])


def launch(home: Path, rounds: int, epochs: int) -> None:
    """Time the units of one teacher by the plain loop and on Ray, one at a time in both."""
    from ray.cluster_utils import Cluster

    from data.arena import ArenaConfig, simulate_arena
    from data.dataset import prepare

    rows = simulate_arena(ArenaConfig(n_rows=1500, seed=0))
    found: dict[str, list[list[float]]] = {"local": [], "ray": []}
    totals: dict[str, list[float]] = {"local": [], "ray": []}
    # A cluster of one processor runs one unit at a time, as the plain loop does.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    options = [f"teachers.llama.train.epochs={epochs}"]
    if not (home / "backbones").exists():
        prepare(rows, home, FOLDS)
        measured(
            ["distill.teacher_oof", "--data", str(home), "--only", "llama", "teachers.llama.train.epochs=0.1"]
        )
    quiet = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": cluster.address}
    gaps: list[float] = []
    for number in range(rounds):
        # Side by side, a processor each, so that whatever else the machine does falls on both.
        with ThreadPoolExecutor() as pool:
            running = {}
            for launcher in ("local", "ray"):
                place = home / f"{launcher}-{number}"
                shutil.rmtree(place, ignore_errors=True)
                prepare(rows, place, FOLDS)
                shutil.copytree(home / "backbones", place / "backbones")
                command = [
                    "distill.teacher_oof",
                    "--data",
                    str(place),
                    "--only",
                    "llama",
                    "--launcher",
                    launcher,
                ]
                running[launcher] = pool.submit(measured, [*command, *options], **quiet)
        for launcher, timed in running.items():
            place = home / f"{launcher}-{number}"
            totals[launcher].append(timed.result()[0])
            times = sorted(path.stat().st_mtime for path in (place / "llama").glob("fold-*/oof.parquet"))
            found[launcher].append(list(np.diff(times)))
            same = (home / "local-0" / "llama" / "oof.parquet").read_bytes()
            assert (place / "llama" / "oof.parquet").read_bytes() == same
            print(launcher, round(totals[launcher][-1], 1), np.round(found[launcher][-1], 1), flush=True)
        gaps += gaps_of(home / f"ray-{number}" / "units")
    cluster.shutdown()
    unit = {k: statistics.median(t for part in v for t in part) for k, v in found.items()}
    fixed = {k: statistics.median(totals[k]) - FOLDS * unit[k] for k in totals}
    body = []
    for k in ("local", "ray"):
        ratio = f"{unit[k] / unit['local'] - 1:+.1%}"
        body.append([k, f"{unit[k]:.1f}", ratio, f"{fixed[k]:.1f}", f"{statistics.median(totals[k]):.1f}"])
    print(format_table(["launcher", "s a unit", "against local", "once, s", "command, s"], body))
    print(f"from the end of a unit to the start of the next on Ray: {statistics.median(gaps):.2f} s (median)")


def gaps_of(logs: Path) -> list[float]:
    """Seconds between the end of one unit and the start of the next, from the units' logs."""
    spans = []
    for path in logs.glob("*.log"):
        stamps = re.findall(r"^(\d{4}-\d\d-\d\d [\d:.]+) ", path.read_text(encoding="utf-8"), re.M)
        spans.append(tuple(datetime.fromisoformat(stamp).timestamp() for stamp in stamps))
    spans.sort()
    return [start - end for (_, end), (start, _) in itertools.pairwise(spans)]


def texts(n: int, path: Path, file_rows: int = 250_000) -> None:
    """Write short texts as Parquet files, each one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for start in range(0, n, file_rows):
        size = min(file_rows, n - start)
        words = WORDS[rng.integers(len(WORDS), size=(size, 6))]
        table = pa.table(
            {
                "row_id": [f"t{i}" for i in range(start, start + size)],
                "prompt": [" ".join(line) for line in words],
                "label": (words[:, 0] < "n").astype(np.int8),
            }
        )
        pq.write_table(table, path / f"{start:09d}.parquet", row_group_size=size)


def label(home: Path, sizes: list[int]) -> None:
    """Label ever more rows with one tiny model: CPU time a row, and peak memory."""
    import pyarrow.parquet as pq

    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / "recipe.yaml").write_text(TEXT_RECIPE, encoding="utf-8")
    texts(600, home / "train")
    measured(
        [
            "data.prepare",
            "--source",
            str(home / "train" / "000000000.parquet"),
            "--out",
            str(home / "rows"),
            "--folds",
            "2",
        ]
    )
    measured(["distill.teacher_oof", "--recipe", str(home / "recipe.yaml"), "--data", str(home / "rows")])
    measured(
        ["distill.export", "--model", str(home / "rows" / "tiny"), "--average", "--out", str(home / "model")]
    )
    body = []
    before: dict[str, tuple[int, float]] = {}
    first: dict[str, float] = {}
    for n in sizes:
        texts(n, home / f"in-{n}")
        for launcher in ("local", "ray"):
            out = home / f"out-{n}-{launcher}"
            command = ["distill.predict", "--model", str(home / "model"), "--data", str(home / f"in-{n}")]
            options = ["--out", str(out), "--launcher", launcher, "--workers", "1", "--shard-rows", "4096"]
            with watched("ray::Labeller") as actor:
                seconds, cpu, peak = measured([*command, *options], OMP_NUM_THREADS="1", RAY_ADDRESS="local")
            parts = sorted(out.glob("part-*"))
            assert sum(pq.read_metadata(part).num_rows for part in parts) == n
            here = home / f"out-{n}-local"
            assert all(part.read_bytes() == (here / part.name).read_bytes() for part in parts)
            if launcher == "ray":
                cpu, worker = actor["cpu"], actor["mib"]
            else:
                worker = peak
            # What a row more costs: what is paid once, however many rows, cancels out.
            rows, spent = before.get(launcher, (0, 0.0))
            cost = (cpu - spent) / (n - rows) * 1e6
            shown = "–"
            if rows:
                shown = f"{cost:.0f} ({cost / first.setdefault(launcher, cost):.2f})"
            before[launcher] = n, cpu
            cells = [f"{seconds:.0f}", f"{cpu:.1f}", shown, f"{worker:.0f}", f"{peak:.0f}"]
            body.append([launcher, f"{n:,}", *cells])
            print(body[-1], flush=True)
    header = [
        "launcher",
        "rows",
        "s",
        "worker's CPU s",
        "CPU µs a row more",
        "worker's peak MiB",
        "command's",
    ]
    print(format_table(header, body))


@contextmanager
def watched(title: str) -> Iterator[dict[str, float]]:
    """Watch the process whose title begins so: its CPU seconds and largest resident MiB."""
    import psutil

    found, stop = {"cpu": 0.0, "mib": 0.0}, threading.Event()

    def look() -> None:
        while not stop.wait(0.3):
            for process in psutil.process_iter(["cmdline", "memory_info", "cpu_times"]):
                info = process.info
                if " ".join(info["cmdline"] or ()).startswith(title) and info["memory_info"]:
                    found["mib"] = max(found["mib"], info["memory_info"].rss / 2**20)
                    found["cpu"] = max(found["cpu"], info["cpu_times"].user + info["cpu_times"].system)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


STUDENT_RATE = 266_028.0
"""Tokens a second of Llama-3.2-1B's shape in prediction, bf16, on one H200 (``gpu_training.md``)."""


def plan(rows: float = 100e6, row_tokens: float = 640.0) -> None:
    """Reckon labelling of many rows by an 8B teacher, a 1B student and a cascade, from measured rates."""
    from distill.runs.estimate import MEASURED, _linear

    teacher = MEASURED["llama", "bf16"]
    small = _linear(16, 2048, 8192, 32, 8, 64)  # Llama-3.2-1B
    tokens = rows * row_tokens * 2
    train_rows, epochs = 2e6, 1
    lines = [
        ("8B teacher labels every row", tokens / teacher.predict),
        ("8B teacher labels 2 million rows to teach with", train_rows * row_tokens * 2 / teacher.predict),
        (
            "1B student learns from these, both orders, one epoch",
            train_rows * row_tokens * 2 * epochs / (teacher.train * teacher.linear / small),
        ),
        ("1B student labels every row", tokens / STUDENT_RATE),
        ("cascade: 10 % of the teacher's cost on the rows that gain most", 0.1 * tokens / teacher.predict),
    ]
    hours = [seconds / 3600 for _, seconds in lines]
    body = [
        [what, f"{h:,.0f}", f"{h / 8:,.1f}", f"{h / 64:,.1f}"]
        for (what, _), h in zip(lines, hours, strict=True)
    ]
    total = sum(hours[1:])
    body.append(
        [
            "teacher on 2 million + student + cascade",
            f"{total:,.0f}",
            f"{total / 8:,.1f}",
            f"{total / 64:,.1f}",
        ]
    )
    print(f"{rows:,.0f} rows of {row_tokens:.0f} tokens in both orders: {tokens / 1e9:,.0f} billion tokens")
    print(f"teacher {teacher.predict:,.0f} tokens/s, student {STUDENT_RATE:,.0f} tokens/s, measured")
    print(format_table(["", "GPU hours", "hours on 8", "hours on 64"], body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=("launch", "label", "plan"))
    parser.add_argument("--home", type=Path, default=Path("runs/scale"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10, help="of a unit; so many that it takes about 30 s")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    args = parser.parse_args()
    if args.phase == "launch":
        launch(args.home / "launch", args.rounds, args.epochs)
    elif args.phase == "label":
        label(args.home / "label", args.sizes)
    else:
        plan()


if __name__ == "__main__":
    main()
