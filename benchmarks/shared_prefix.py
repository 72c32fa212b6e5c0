"""What rows gain whose prefix is laid out once: ``python -m benchmarks.shared_prefix [SHAPE...]``.

Three kinds of rows, by the tokens that a row's sequences share and those that each has for itself: ``pairs``
as LMSYS's in both orders, ``map`` as a simulated classroom's candidates, ``rag`` of eight candidates that
share 80 % of 1,024 tokens. First the tokens saved; with ``--source`` and ``--tokenizer`` also those of real
rows under each template. Then, for each shape of :mod:`benchmarks.gpu_model`, rows a second of training and
prediction with prefixes laid out once and without, in one process and from one classifier; before it, with
``--agreement``, how far logits and gradients of both are from float32's. Weights are random; on a CPU shapes
and rows are small.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distill.training.predict
from benchmarks.gpu_model import (
    CUDA,
    DEVICE,
    PACK_TOKENS,
    WARM,
    Clock,
    make_classifier,
    peak,
    reset,
    say,
)
from data.console.command import format_table
from data.encoding.encode import Encoded, Encoder, Truncation
from data.encoding.template import Template, template_names
from data.sources.read import read_source
from distill.config import TrainConfig
from distill.kernels.linear import merge_adapters
from distill.losses import label_loss
from distill.packing.examples import Examples
from distill.packing.pack import pack
from distill.packing.sharing import layout, prefixes, saved_share, shape_of
from distill.training.predict import predict_logits
from distill.training.trainer import train

AT = (0, 5, 25, 50, 75, 90, 95, 99, 100)
PAIRS = ((3, 17, 23, 32, 59, 150, 318, 1040, 1782), (5, 61, 207, 472, 752, 1155, 1437, 1981, 2048))
"""Percentiles of the tokens shared and of a sequence's own: 1,470 LMSYS rows, Llama-3's tokenizer."""
KINDS = {"pairs": 12, "map": 16, "rag": 2}
"""Kinds of rows, and how many make a step."""
SMALLER = 1 if CUDA else 8
LEAST_SECONDS = 2.0 if CUDA else 0.05
"""Of a timed prediction: a call's start takes a tenth of a second."""


def row_shapes(kind: str, n: int) -> list[list[int]]:
    """Tokens that a row's sequences share, then each one's own, a list a row."""
    rng = np.random.default_rng(1)
    if kind == "pairs":
        shared, own = (np.exp(np.interp(rng.uniform(0, 100, n), AT, np.log(t))) for t in PAIRS)
        shared = np.minimum(shared, 2000)
        own = np.minimum(own, 2048 - shared)
        found = [[int(s), *[max(2, int(o))] * 2] for s, o in zip(shared, own, strict=True)]
    elif kind == "map":
        found = [[int(rng.integers(50, 62)), *rng.integers(10, 17, rng.integers(6, 11))] for _ in range(n)]
    else:
        found = [[820, *rng.integers(180, 230, 8)] for _ in range(n)]
    return [[max(1, int(x) // (1 if kind == "map" else SMALLER)) for x in row] for row in found]


def made_of(shapes: list[list[int]], pair: bool, vocab: int = 300) -> Examples:
    """Rows of random tokens, the first ones of a row's sequences alike, and random labels."""
    rng = np.random.default_rng(2)
    pieces = []
    for shared, *owns in shapes:
        start = rng.integers(5, vocab, size=shared, dtype=np.int32)
        pieces += [np.concatenate([start, rng.integers(5, vocab, size=n, dtype=np.int32)]) for n in owns]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    sizes = np.array([len(owns) for _, *owns in shapes])
    classes = 3 if pair else int(sizes.max())
    targets = np.eye(classes)[rng.integers(np.where(pair, classes, sizes))]
    encoded = Encoded(np.concatenate(pieces), offsets, 2 if pair else 1, 0, None if pair else sizes)
    return Examples(encoded, targets, [1, 0, 2] if pair else list(range(classes)), pad_id=2)


def examples_of(kind: str, n: int) -> Examples:
    """Rows of one kind."""
    return made_of(row_shapes(kind, n), kind == "pairs")


def savings(encoded: Encoded) -> list[str]:
    """Cells of the table: sequences a row, tokens a sequence, tokens shared, share of tokens saved."""
    rows = np.arange(
        len(encoded.sizes) if encoded.sizes is not None else len(encoded.lengths) // encoded.orders
    )
    found = prefixes(encoded, rows)
    share = saved_share(encoded, rows, found)
    each = len(encoded.lengths) / len(rows)
    return [f"{each:.1f}", f"{encoded.lengths.mean():.0f}", f"{np.median(found):.0f}", f"{share:.1%}"]


def profile(source: str | None, tokenizer: str | None, max_length: int) -> str:
    """What is saved of each kind of rows, and of real ones under each template that suits them."""
    body = [[kind, *savings(examples_of(kind, 400).encoded)] for kind in KINDS]
    if source and tokenizer:
        from transformers import AutoTokenizer

        rows, _ = read_source(source)
        opened = AutoTokenizer.from_pretrained(tokenizer)
        for name in ["candidate"] if rows.classes.candidates else template_names():
            if "chat" in Template(name).text and not opened.chat_template:
                continue
            encoded = Encoder(opened, Template(name), Truncation(max_length)).encode(rows)
            body.append([f"{Path(source).name}, {name}", *savings(encoded)])
    return format_table(["rows", "sequences a row", "tokens each", "shared (median)", "saved"], body)


def attention_of(shape: str) -> str:
    """Attention that shares prefixes, whatever packages are installed."""
    return "auto" if not CUDA or shape.startswith("gemma") else "varlen"


def agreement(shape: str, tell: Callable[..., None]) -> None:
    """Logits and gradients of a pack in bf16, prefixes laid out once and not, against float32's formula."""
    examples = made_of([*row_shapes("map", 8), *row_shapes("rag", 1)], False)
    encoded = examples.encoded
    chosen = np.arange(len(encoded.lengths))
    found = prefixes(encoded, np.arange(len(examples.targets)))

    def outcome(
        precision: str, attention: str, shared: np.ndarray | None, compiled: bool
    ) -> list[torch.Tensor]:
        torch.manual_seed(0)
        classifier = make_classifier(shape, precision, compiled, attention=attention, outputs=1)
        static = None
        if classifier.plan.static:
            static = shape_of([layout(encoded, chosen, shared)], int(encoded.lengths.max()))
        logits = classifier(pack=pack(encoded, chosen, 2, static, shared).to(DEVICE))
        (logits * torch.arange(len(logits), device=DEVICE)[:, None].cos()).sum().backward()
        return [logits.detach().float(), torch.cat([p.grad.float().ravel() for p in classifier.trained])]

    exact = outcome("fp32", "eager", None, False)
    for name, shared, compiled in (
        ("apart", None, False),
        ("shared", found, False),
        ("shared, compiled", found, True),
    ):
        made = outcome("bf16", attention_of(shape), shared, compiled)
        logits, gradients = (
            float(f"{(m - e).norm() / e.norm():.2e}") for m, e in zip(made, exact, strict=True)
        )
        tell(measure="agreement", way=name, logits=logits, gradients=gradients)
        _free()


def measure(shape: str, kinds: list[str], steps: int, tell: Callable[..., None]) -> None:
    """Rows a second of training and of prediction, prefixes laid out once and not, and their ratio."""
    distill.training.predict.WORTH_COMPILING = 0
    for group in ([k for k in kinds if k == "pairs"], [k for k in kinds if k != "pairs"]):
        if not group:
            continue
        outputs = 3 if group == ["pairs"] else 1
        classifier = make_classifier(shape, "bf16", attention=attention_of(shape), outputs=outputs)
        for training in (True, False):
            if not training:
                merge_adapters(classifier)
                classifier.graphs.forget()
            for kind in group:
                _compare(classifier, kind, steps, training, shape, tell)
        del classifier
        _free()


def _compare(
    classifier: Any, kind: str, steps: int, training: bool, shape: str, tell: Callable[..., None]
) -> None:
    rates = []
    for wanted in ("false", "true"):
        reset()
        try:
            run = _trained if training else _predicted
            rate, first = run(classifier, kind, wanted, steps)
        except Exception as error:
            traceback.print_exc()
            tell(kind=kind, shared=wanted, error=f"{type(error).__name__}: {str(error)[:300]}")
            return
        rates.append(rate)
        tell(
            measure="train" if training else "predict",
            kind=kind,
            shared=wanted,
            rows_s=round(rate, 2),
            first_s=round(first, 1),
            peak_gib=round(peak(), 1),
            attention=classifier.plan.attention,
            graphs=classifier.plan.graphs,
        )
    tell(measure="train" if training else "predict", kind=kind, ratio=round(rates[1] / rates[0], 3))


def _trained(classifier: Any, kind: str, wanted: str, steps: int) -> tuple[float, float]:
    per_step = KINDS[kind]
    n = (WARM + steps) * per_step
    examples = replace(examples_of(kind, n), shared_prefix=wanted)
    config = TrainConfig(lr=1e-5, rows_per_step=per_step, pack_tokens=PACK_TOKENS, log_steps=10)
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        train(classifier, examples, np.arange(n), config, label_loss, Path(out), kind, callbacks=[clock])
    return steps * per_step / clock.seconds(WARM - 1, WARM + steps - 1), clock.first


def _predicted(classifier: Any, kind: str, wanted: str, steps: int) -> tuple[float, float]:
    n = max(8, (WARM + steps) * KINDS[kind])
    first = 0.0
    while True:
        examples = replace(examples_of(kind, n), shared_prefix=wanted)
        times = []
        for _ in range(2):
            started = time.perf_counter()
            predict_logits(classifier, examples, np.arange(n), 0, kind, PACK_TOKENS)
            times.append(time.perf_counter() - started)
        first = first or times[0]
        if times[1] > LEAST_SECONDS:
            return n / times[1], first
        n = int(n * max(2.0, 1.5 * LEAST_SECONDS / times[1]))


def _free() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def main() -> None:
    """Print what is saved, then measure the asked shapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("shapes", nargs="*", help="smol, llama, gemma2b, ... of benchmarks.gpu_model")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--source", help="real rows, for what is saved")
    parser.add_argument("--tokenizer", help="directory of the tokenizer that reads them")
    parser.add_argument(
        "--max-length", type=int, default=2048, help="tokens of a real row's sequence at most"
    )
    parser.add_argument("--steps", type=int, default=12 if CUDA else 3, help="timed training steps")
    parser.add_argument("--seconds", type=float, default=600, help="start no shape after this long")
    parser.add_argument("--agreement", action="store_true", help="logits and gradients, too")
    parser.add_argument("--out", type=Path, default=Path("shared_prefix.jsonl"))
    args = parser.parse_args()
    started = time.perf_counter()
    print(profile(args.source, args.tokenizer, args.max_length))
    for shape in args.shapes:
        if time.perf_counter() - started > args.seconds:
            say(args.out, shape=shape, skipped="no time left")
            continue

        def tell(shape: str = shape, **line: Any) -> None:
            say(args.out, shape=shape, at_s=round(time.perf_counter() - started), **line)

        if args.agreement:
            agreement(shape, tell)
        measure(shape, args.kinds, args.steps, tell)


if __name__ == "__main__":
    main()
