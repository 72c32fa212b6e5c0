"""Preparing data at scale, beside a peer: ``python -m benchmarks.data [--tokenizer DIR] [--rows N ...]``.

Synthetic preference rows go through ``python -m data.prepare`` as a user would run it (groups with
near-duplicates, folds, tokens); time and peak memory of the whole process tree are measured, and one run
is killed again and again and must end with the same bytes. Then both orders of real or synthetic rows
are tokenized by the token store and by ``datasets.map`` over the rendered text of each order, with the
same tokenizer on the same cores. Markdown, kept in ``benchmarks/data.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import CHUNK_ROWS, Encoder
from data.encoding.template import Template
from data.encoding.tokenizer import load_tokenizer
from data.encoding.tokens import open_tokens
from data.encoding.truncate import Truncation
from data.files import write_text
from data.schema import Rows
from data.sources.read import SourceOptions, read_source

HERE = Path(__file__).parent
NEAR_SHARE, REPEAT_SHARE = 0.05, 0.10
SEAMLESS = """{% for turn in turns %}
<|start_header_id|>prompt<|end_header_id|>{{ turn.prompt }}<|eot_id|>\
<|start_header_id|>first<|end_header_id|>{{ turn.response_a }}<|eot_id|>\
<|start_header_id|>second<|end_header_id|>{{ turn.response_b }}<|eot_id|>\
{% endfor %}<|start_header_id|>verdict<|end_header_id|>"""
"""Special tokens at every seam: nothing merges across one, so whole text and segments must agree."""


def words() -> tuple[list[str], list[float]]:
    """The words of the simulated arena, and how often they stand there."""
    rows = simulate_arena(ArenaConfig(n_rows=2000))
    counts = Counter(
        word
        for name in ("prompt", "response_a", "response_b")
        for turns in rows.table.column(name).to_pylist()
        for turn in turns
        for word in turn.split()
    )
    return list(counts), np.cumsum(list(counts.values())).tolist()


def synthetic(n: int, seed: int = 0) -> Iterator[pa.Table]:
    """Rows of about 300 characters; some prompts repeat, some nearly."""
    rng = random.Random(seed)
    vocabulary, weights = words()

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(vocabulary, cum_weights=weights, k=rng.randint(low, high)))

    recent: list[str] = [text(8, 20)]
    for start in range(0, n, 10_000):
        size = min(10_000, n - start)
        prompts = []
        for _ in range(size):
            draw = rng.random()
            if draw < REPEAT_SHARE:
                prompts.append(rng.choice(recent))
            elif draw < REPEAT_SHARE + NEAR_SHARE:
                prompts.append(rng.choice(recent) + " " + rng.choice(vocabulary))
            else:
                prompts.append(text(8, 20))
        recent = (recent + prompts)[-2000:]
        yield pa.table(
            {
                "id": [f"s{start + i}" for i in range(size)],
                "prompt": prompts,
                "response_a": [text(8, 36) for _ in range(size)],
                "response_b": [text(8, 36) for _ in range(size)],
                "label": [rng.randrange(3) for _ in range(size)],
            }
        )


def write_synthetic(path: Path, n: int) -> None:
    writer = None
    for table in synthetic(n):
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def tree_memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process and its descendants: all, and anonymous only (without mapped files)."""
    total = anonymous = 0
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        try:
            status = Path(f"/proc/{current}/status").read_text()
            waiting += map(int, Path(f"/proc/{current}/task/{current}/children").read_text().split())
        except OSError:
            continue
        values = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Rss"))
        sizes = {name: int(value.split()[0]) << 10 for name, value in values.items()}
        total += sum(sizes.values())
        anonymous += sizes.get("RssAnon", 0)
    return total, anonymous


def prepare(source: Path, out: Path, tokenizer: str, kill_after: float | None = None) -> dict[str, float]:
    """Run the command; return seconds and peak memory of its process tree."""
    command = [
        sys.executable,
        "-m",
        "data.prepare",
        "--source",
        str(source),
        "--out",
        str(out),
        "--tokenizer",
        tokenizer,
    ]
    start = time.perf_counter()
    peak = peak_anonymous = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None:
            total, anonymous = tree_memory(process.pid)
            peak, peak_anonymous = max(peak, total), max(peak_anonymous, anonymous)
            if kill_after is not None and time.perf_counter() - start > kill_after:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        if kill_after is None and process.returncode:
            raise SystemExit(f"{command} failed with {process.returncode}")
    return {
        "seconds": time.perf_counter() - start,
        "peak": peak,
        "anonymous": peak_anonymous,
        "rc": process.returncode,
    }


def fingerprint(out: Path) -> str:
    """Hash of every file a preparation leaves."""
    digest = hashlib.sha256()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(out)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def scale(sizes: list[int], tokenizer: str, work: Path) -> list[str]:
    lines = [
        "| rows | seconds | rows a second | peak memory, all processes | of which anonymous |",
        "|---|---|---|---|---|",
    ]
    whole: dict[int, float] = {}
    for n in sizes:
        source, out = work / f"{n}.parquet", work / f"out-{n}"
        write_synthetic(source, n)
        took = prepare(source, out, tokenizer)
        whole[n] = took["seconds"]
        lines.append(
            f"| {n:,} | {took['seconds']:.0f} | {n / took['seconds']:,.0f} | {took['peak'] / 2**30:.2f} "
            "GiB | "
            f"{took['anonymous'] / 2**30:.2f} GiB |"
        )
        print(lines[-1], flush=True)
    n = sizes[-2] if len(sizes) > 1 else sizes[-1]
    killed, kills, total = work / "killed", 0, 0.0
    for share in (0.3, 0.6, 0.6):
        took = prepare(work / f"{n}.parquet", killed, tokenizer, kill_after=share * whole[n])
        kills += took["rc"] == -signal.SIGKILL
        total += took["seconds"]
    took = prepare(work / f"{n}.parquet", killed, tokenizer)
    same = fingerprint(killed) == fingerprint(work / f"out-{n}")
    lines += [
        "",
        f"{n:,} rows, killed {kills} times (SIGKILL to every process) and started again: the files left are "
        f"{'the same, byte for byte,' if same else 'NOT THE SAME'} as without; the last start took "
        f"{took['seconds']:.0f} s against {whole[n]:.0f} s for the whole.",
    ]
    print(lines[-1], flush=True)
    for path in (killed, *(work / f"out-{n}" for n in sizes)):
        shutil.rmtree(path, ignore_errors=True)
    return lines


def rendered(rows: Rows, template: Template, bos: str) -> tuple[list[str], list[str]]:
    """The text of every row in both orders."""
    columns = [rows.table.column(name).to_pylist() for name in ("prompt", "response_a", "response_b")]
    both = tuple(
        [
            bos + "".join(s.text for s in template.segments(*row, swap=swap))
            for row in zip(*columns, strict=True)
        ]
        for swap in (False, True)
    )
    return both[0], both[1]


def peer(texts: list[str], tokenizer: Any, workers: int | None) -> tuple[float, Any]:
    """Tokenize by ``datasets.map``; return seconds and the data set."""
    import datasets

    source = datasets.Dataset.from_dict({"text": texts})
    start = time.perf_counter()
    found = source.map(
        lambda batch: {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        num_proc=workers,
        remove_columns=["text"],
    )
    return time.perf_counter() - start, found


def ours(rows: Rows, encoder: Encoder, home: Path) -> tuple[float, list[np.ndarray]]:
    """Build the store and splice both orders; return seconds and the ids of each order."""
    shutil.rmtree(home, ignore_errors=True)
    start = time.perf_counter()
    tokens, _ = open_tokens(rows, encoder, home)
    chunks = [
        encoder.assemble(tokens, rows.classes.orders, at, at + CHUNK_ROWS)
        for at in range(0, len(rows), CHUNK_ROWS)
    ]
    seconds = time.perf_counter() - start
    return seconds, [chunk[s] for chunk in chunks for s in range(len(chunk.lengths))]


def beside_peer(name: str, rows: Rows, tokenizer: Any, work: Path, runs: int) -> list[str]:
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    encoder = Encoder(tokenizer, Template("seamless", SEAMLESS), Truncation(10**6))
    texts = rendered(rows, encoder.template, tokenizer.bos_token)
    cores = os.cpu_count() or 1
    best: dict[str, float] = {}
    mine: list[np.ndarray] = []
    theirs: list[Any] = []
    for _ in range(runs):
        # Nothing known from the last run: neither template nor the hash of the rows.
        encoder = Encoder(tokenizer, encoder.template, encoder.truncation)
        rows = Rows(rows.table, rows.classes)
        seconds, mine = ours(rows, encoder, work / "peer-tokens")
        best["ours"] = min(best.get("ours", seconds), seconds)
        for label, workers in (("1 process, threads", None), (f"num_proc={cores}", cores)):
            took = [peer(order, tokenizer, workers) for order in texts]
            seconds = sum(t for t, _ in took)
            theirs = [found for _, found in took]
            best[label] = min(best.get(label, seconds), seconds)
        print(name, {label: round(value, 1) for label, value in best.items()}, flush=True)
    equal = sum(
        mine[2 * i + order].tolist() == found["input_ids"]
        for order in (0, 1)
        for i, found in enumerate(theirs[order])
    )
    fastest = min(value for label, value in best.items() if label != "ours")
    lines = [
        f"| {name}, {len(rows):,} rows, {sum(map(len, mine)):,} tokens | {best['ours']:.1f} | "
        + " | ".join(f"{value:.1f}" for label, value in best.items() if label != "ours")
        + f" | {fastest / best['ours']:.1f} × | {equal:,} of {len(mine):,} |"
    ]
    print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True, help="what to tokenize with, e.g. that of Llama 3")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--peer-rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=2, help="runs beside the peer, of which the best counts")
    parser.add_argument("--source", help="real rows to tokenize beside the peer, too")
    parser.add_argument("--table", type=Path, default=HERE / "data.md")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = scale(args.rows, args.tokenizer, work) if args.rows != [0] else []
        write_synthetic(work / "peer.parquet", args.peer_rows)
        rows, _ = read_source(str(work / "peer.parquet"), SourceOptions())
        lines = beside_peer("synthetic", rows, tokenizer, work, args.runs)
        if args.source:
            real, _ = read_source(args.source)
            lines += beside_peer("LMSYS", real, tokenizer, work, args.runs)
    cores = os.cpu_count()
    text = f"""# Data at scale

`python -m benchmarks.data` on {cores} cores shared with other work ({platform.machine()}, Python
{platform.python_version()}), with the Llama 3 tokenizer. Seconds on a busy machine are rough;
ratios come from runs in turn.

## Prepare: groups with near-duplicates, folds, tokens

Synthetic rows of about 300 characters, 10 % of the prompts repeated and 5 % nearly so, through
`python -m data.prepare` as a user runs it.

{chr(10).join(found)}

## Tokens of both orders, beside `datasets.map`

The token store and both orders spliced from it, against `datasets.map(batched=True)` over the rendered
text of each order; best of {args.runs} run(s) in turn, both from a loaded tokenizer. A seam is the
border of a turn. The template has special tokens at its seams, so that the whole text merges nothing across
one, and the ids of all rows must be equal. From a `tokenizer.json` instead of Llama's own file its merges are
looked through before the faster road is taken: ours then takes a second longer on the first set, and half a
second on the second, which is too small for that to pay.

| rows | ours, s | map, threads, s | map, {cores} processes, s | faster than the better | equal sequences |
|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    write_text(args.table, text)


if __name__ == "__main__":
    main()
