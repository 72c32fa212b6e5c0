"""Rows a second of an exported classifier on two cores: torch, ONNX and int8: ``python -m benchmarks.serve``.

``--model`` is a directory of ``distill.export --onnx int8``; without one, ``--backbone`` gets a fresh head of
three classes and is exported as that command does. Each way predicts the same rows of random tokens, sorted
by length and padded, eight at a time, and one at a time for the latency: two processes of one thread each at
once, so that both cores work. Times are the processes' own processor seconds, so that what else the machine
does counts little; the fastest of several turns counts. Agreement is the largest difference of a probability
from torch's in float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data.console.command import format_table
from data.softmax import softmax

WAYS = ("torch float32", "torch bfloat16", "onnx float32", "onnx int8")
TYPICAL, SPREAD, LEAST, MOST = 170, 0.5, 16, 512
"""Tokens of a row: log-normal, as pairs of web arguments have them."""
BATCH = 8


def main() -> None:
    """Time every way in turns, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="what distill.export --onnx int8 left")
    parser.add_argument("--backbone", type=Path, help="a checkpoint to give a head and export")
    parser.add_argument("--layers", type=int, help="its first layers alone")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = args.model or with_head(args.backbone, args.layers, Path(scratch))
        lines, wanted = [], None
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for way in WAYS:
                turns = [
                    list(pool.map(timed, [home] * 2, [way] * 2, [args.rows] * 2)) for _ in range(args.turns)
                ]
                rate = max(sum(one.rate for one in turn) for turn in turns)
                single = min(min(one.latency for one in turn) for turn in turns)
                probs = turns[0][0].probs
                wanted = probs if wanted is None else wanted
                lines.append(
                    [way, f"{rate:.1f}", f"{1000 * single:.0f}", f"{np.abs(probs - wanted).max():.4f}"]
                )
    header = ["way", "rows a second, two cores", "ms for one row, one core", "differs by at most"]
    print(format_table(header, lines))


def with_head(backbone: Path, layers: int | None, scratch: Path) -> Path:
    """Give a backbone a head whose logits vary as a trained one's do, and write it with its graphs."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from distill.prediction.onnx import write_int8, write_onnx

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=3, dtype=torch.float32
    ).eval()
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    model.config.pad_token_id = model.config.pad_token_id or 0
    with torch.no_grad():
        found = [
            model(input_ids=torch.tensor([ids])).logits[0] for ids in rows_of(model.config.vocab_size, 8)
        ]
        model.score.weight /= torch.stack(found).std()
    model.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(scratch)
    write_int8(write_onnx(scratch))
    return scratch


def rows_of(vocabulary: int, n: int) -> list[list[int]]:
    """Rows of random tokens, the shortest first; no token is the padding."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(TYPICAL), SPREAD, n), LEAST, MOST).astype(int)
    return [rng.integers(3, vocabulary, length).tolist() for length in sorted(lengths)]


class Timed:
    """What one process measured: rows a processor second, seconds for one typical row, probabilities."""

    def __init__(self, rate: float, latency: float, probs: np.ndarray) -> None:
        self.rate, self.latency, self.probs = rate, latency, probs


def timed(home: Path, way: str, n: int) -> Timed:
    """Predict one typical row to warm up, all rows once, in batches, and the typical row five times."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(home)
    rows, predict = rows_of(config.vocab_size, n), opened(home, way)
    batches = [padded(rows[i : i + BATCH], config.pad_token_id or 0) for i in range(0, n, BATCH)]
    alone = padded([rows[n // 2]], 0)
    predict(*alone)
    start = time.process_time()
    logits = np.concatenate([predict(*batch) for batch in batches])
    spent = time.process_time() - start
    times = []
    for _ in range(5):
        start = time.process_time()
        predict(*alone)
        times.append(time.process_time() - start)
    return Timed(n / spent, min(times), softmax(logits))


def padded(rows: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of a batch, padded on the right."""
    ids = np.full((len(rows), max(map(len, rows))), pad)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ids, mask


def opened(home: Path, way: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A model in one thread, as a function of ids and mask to logits."""
    if way.startswith("onnx"):
        import onnxruntime

        from distill.prediction.onnx import FOLDER, INT8, MODEL

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = home / FOLDER / (INT8 if way.endswith("int8") else MODEL)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    dtype = getattr(torch, way.split()[1])
    model = AutoModelForSequenceClassification.from_pretrained(home, dtype=dtype).eval()

    def predict(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return found.logits.float().numpy()

    return predict


if __name__ == "__main__":
    main()
