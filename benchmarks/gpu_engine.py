"""The engine's second stage, step by step beside what was before: ``python -m benchmarks.gpu_engine``.

A part states what it is expected to change, measures before and after in one process, and prints a line for
each as it is measured. ``--tiny`` runs the parts on a CPU, to check the script.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_int8
from benchmarks.gpu_attention import compare
from benchmarks.gpu_measures import measure_prediction, measure_training, profile
from benchmarks.gpu_model import CUDA, DEVICE, make_classifier, make_examples, repeat, say
from benchmarks.gpu_stock import SMALL, measure_stock
from distill.kernels.linear import _FusedGate
from distill.model import decoder
from distill.packing.cutting import static_shape
from distill.packing.pack import pack

PART_SECONDS = 300
SHORT = list(range(90, 251, 10))
"""Row lengths of a small student's task, 170 on average."""
PAIRS = 16


def _freed() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def unpacking(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """NF4 to FP8: the kernel against its reference, and its time beside dequantisation to bf16.

    Expected: 59 M weights read in 29 MB and written in 59: 22 us at 4 TB/s, 40 in practice; to bf16 80.
    """
    import bitsandbytes.functional as bnb

    from distill.kernels.products import dense
    from distill.kernels.scaled import FP8
    from distill.kernels.unpack import block_scales, row_scales, unpack

    shape = [14336, 4096] if CUDA else [128, 64]
    weight = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) * 0.02
    for nested in (False, True):
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
        extra = [state.state2.code, state.state2.absmax, state.offset] if nested else []
        scale = row_scales(packed, state.absmax, extra, shape, FP8)
        stored = [packed, scale, state.absmax, *extra]
        exact = dense("nf4", [packed, state.absmax, *extra], shape, torch.float32) / scale
        wanted, found = exact.to(FP8), unpack(stored, shape, FP8)
        turned = unpack(stored, shape, FP8, turned=True)
        tell(
            nested=nested,
            equal=float((found.view(torch.uint8) == wanted.view(torch.uint8)).float().mean()),
            worst=float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max()),
            turned_equal=bool(torch.equal(turned.t().float(), found.float())),
            blocks=len(block_scales(state.absmax, extra)),
            us_forward=round(1e6 * repeat(lambda s=stored: unpack(s, shape, FP8), 50)),
            us_turned=round(1e6 * repeat(lambda s=stored: unpack(s, shape, FP8, turned=True), 50)),
            us_bf16=round(
                1e6
                * repeat(
                    lambda s=stored: dense("nf4", [s[0], *s[2:]], shape, torch.bfloat16), 50 if CUDA else 1
                )
            ),
        )


def agreement(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """Recorded passes against layer by layer, and FP8 products against bf16 ones: logits and gradients.

    Expected: recorded, the norm of the difference is within bf16's rounding (under .02).
    """
    examples = make_examples(PAIRS, args.short, 300)
    lengths = examples.encoded.lengths
    shape = static_shape([lengths], int(lengths.max()))
    one = pack(examples.encoded, np.arange(2 * PAIRS), 2, shape).to(DEVICE)

    def outcome(classifier: Any) -> list[torch.Tensor]:
        classifier.zero_grad()
        logits = classifier(pack=one)
        logits.square().sum().backward()
        trained = [p for p in classifier.parameters() if p.requires_grad]
        return [logits.detach().float(), torch.cat([p.grad.float().ravel() for p in trained])]

    def gap(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
        return [float(f"{(f - w).norm() / w.norm():.2e}") for f, w in zip(found, wanted, strict=True)]

    classifier = make_classifier("smol", "bf16").train()
    by_default = classifier.plan.graphs
    classifier.plan.graphs = False
    alone = outcome(classifier)
    again = outcome(classifier)
    classifier.plan.graphs = True
    first, second = (gap(outcome(classifier), alone) for _ in range(2))
    tell(graphs_by_default=by_default, again=gap(again, alone), recorded=first, replayed=second)
    tell(still_recorded=classifier.plan.graphs)
    nf4, fp8 = (outcome(make_classifier("smol", kind).train()) for kind in ("nf4", "nf4fp8"))
    tell(nf4_fp8=gap(fp8, nf4), gradient_cosine=float(torch.cosine_similarity(fp8[1], nf4[1], dim=0)))


def small(args: argparse.Namespace, tell: Callable[..., None], family: str = "smol") -> None:
    """A small model's training and prediction, layer by layer and recorded, beside the stock libraries.

    Expected: SmolLM2's shape from some 20,000 tokens a second to over 200,000 in training: what remains is
    the GPU's own time for some 2,500 kernels of 4 to 15 us, about 20 ms a step of 5,400 tokens.
    """
    lengths, pairs, steps = (args.short, PAIRS, 60) if family == "smol" else (args.lengths, 12, 16)
    if not CUDA:
        steps = 2
    for recorded in (False, True) if args.before else (True,):
        classifier = make_classifier(family, "bf16")
        classifier.plan.graphs = recorded
        found = measure_training(
            classifier, family, lengths, "train", steps if recorded else min(steps, 16), 16384, pairs
        )
        tell(measure="train", recorded=recorded, still=classifier.plan.graphs, **found)
        if recorded:
            classifier.train()
            tell(measure="profile", **profile(classifier, family, lengths, True))
        found = measure_prediction(classifier, family, lengths, merge=True)
        tell(measure="predict", recorded=recorded, still=classifier.plan.graphs, **found)
        del classifier
        _freed()
    if family in SMALL:
        tell(measure="train", library="stock", **measure_stock(family, lengths, False, 12))


def student(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """Llama-3.2-1B's shape, layer by layer and recorded.

    Expected: prediction from 68 % of 790 TFLOP/s by some 5 % of it; training to 45 % at least.
    """
    small(args, tell, "llama1b")


def large(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """Llama-3.1-8B in NF4, products in bf16 and in FP8.

    Expected: frozen products 704 to 354 ms a pack, unpacking 19 to about 10, activations rounded in what is
    compiled anyway: 1,087 to about 740 ms, 17,800 to 25,500 tokens a second; with checkpointing 12,000 to
    17,000, as the third pass over the products gains too.
    """
    for precision in ("nf4", "nf4fp8") if args.before else ("nf4fp8",):
        classifier = make_classifier("llama", precision)
        for measure in ("train", "checkpoint") if args.checkpoint else ("train",):
            tokens = 16384
            found = measure_training(classifier, "llama", args.lengths, measure, args.steps, tokens)
            tell(measure=measure, precision=precision, **found)
        if precision == "nf4fp8":
            tell(measure="profile", **profile(classifier, "llama", args.lengths, True))
        del classifier
        _freed()


def recompute(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """Llama-3.1-8B with every layer recomputed, two packs a step: how it is run again, and what else waits.

    Expected: steps without outliers where layers run again with reentrance; that neither the collector nor
    the random states that are kept for dropout cost what they cost without it.
    """
    classifier = make_classifier("llama", "nf4fp8")
    hooks = {"use_reentrant": False}
    ways: dict[str, dict[str, bool]] = {"reentrant": {}}
    if args.before:
        ways |= {"hooks": hooks, "hooks, no collector": hooks}
        ways |= {"hooks, no random states": {**hooks, "preserve_rng_state": False}}
    original = decoder.checkpoint
    for way, changes in ways.items():

        def again(*given: Any, changes: dict[str, bool] = changes, **options: Any) -> Any:
            return original(*given, **options | changes)

        decoder.checkpoint = again
        if way.endswith("no collector"):
            gc.disable()
        try:
            measure = f"checkpoint@{14336 if CUDA else 512}"
            found = measure_training(classifier, "llama", args.lengths, measure, args.steps, 16384)
        finally:
            decoder.checkpoint = original
            gc.enable()
        tell(measure="train", way=way, **found)


def gated(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """FP8 prediction: the gated unit's output rounded as it is made, a row read once.

    Expected: .84 ms a layer to .4 of 8.7, so 68,700 tokens a second to 72,000.
    """
    import distill.model.decoder as decoder

    classifier = make_classifier("llama", "fp8")
    fused = [m for m in classifier.modules() if isinstance(m, _FusedGate)]
    kinds = [type(m) for m in fused]
    merge = True
    for one_pass in (False, True) if args.before else (True,):
        torch._dynamo.reset()
        decoder._compiled.clear()
        for module, kind in zip(fused, kinds, strict=True):
            module.__class__ = kind if one_pass else kind.__mro__[2]
        found = measure_prediction(classifier, "llama", args.lengths, merge)
        tell(measure="predict", one_pass=one_pass, **found)
        merge = False
    tell(measure="profile", **profile(classifier, "llama", args.lengths, False))


def flash4(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """FlashAttention-4: agreement with the formula, then a layer's attention beside what the engine has.

    Expected: Llama's 1.1 + 2.5 ms a layer and pack of 19,584 tokens to some 2.2, Gemma-2's 1.4 + 5.5 to some
    3.7, if its kernels reach on Hopper what those of version 3 do; first calls compile, seconds a kernel.
    """
    compare(args.lengths, tell)


def int8_products(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """Products of an 8B's shapes in bf16, FP8 and int8, and what int8 costs beside them; all in microseconds.

    Expected: bf16 at 725 TFLOP/s, FP8 at 1,450; the int8 kernel at 900 to 1,300, its numbers those of the
    formula to the bit; torch's int8 product at 1,300 or so by itself, 700 with its sums scaled apart.
    Rounding 16,384 rows of 4,096 in one pass 60 us, turning a weight of 59 M 40, writing it out 280.
    """
    gpu_int8.products(tell)


def int8(args: argparse.Namespace, tell: Callable[..., None]) -> None:
    """Llama-3.1-8B in int8: written out before each product, and multiplied as it is; NF4 unpacked to it.

    Expected: written out 16,500 tokens a second in training, products in int8 21,000 to 25,000, for NF4 5 %
    less; prediction 38,000 written out and 50,000 to 60,000 in int8. Of the loaded memory 8 GiB is int8's.
    """
    for precision in ("int8", "int8int8", "nf4int8") if args.before else ("int8int8",):
        classifier = make_classifier("llama", precision)
        for measure in ("train", "checkpoint") if args.checkpoint else ("train",):
            found = measure_training(classifier, "llama", args.lengths, measure, args.steps, 16384)
            tell(measure=measure, precision=precision, **found)
        if precision == "int8int8":
            tell(measure="profile", **profile(classifier, "llama", args.lengths, True))
        found = measure_prediction(classifier, "llama", args.lengths, merge=not precision.startswith("nf4"))
        tell(measure="predict", precision=precision, **found)
        del classifier
        _freed()


PARTS: dict[str, Callable[..., None]] = {
    "unpacking": unpacking,
    "agreement": agreement,
    "small": small,
    "student": student,
    "large": large,
    "recompute": recompute,
    "gated": gated,
    "flash4": flash4,
    "int8_products": int8_products,
    "int8": int8,
}


def _inside(part: str, args: argparse.Namespace) -> None:
    what = PARTS[part]
    say(args.out, part=part, expected=" ".join((what.__doc__ or "").split("Expected: ")[1].split()))
    started = time.perf_counter()
    try:
        what(args, lambda **line: say(args.out, part=part, **line))
    except Exception as error:
        traceback.print_exc()
        say(args.out, part=part, error=f"{type(error).__name__}: {str(error)[:400]}")
    say(args.out, part=part, took_s=round(time.perf_counter() - started, 1))


def main() -> None:
    """Run the asked parts, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all if none")
    parser.add_argument("--lengths", type=Path, help="JSON list of real row lengths in tokens")
    parser.add_argument("--out", type=Path, default=Path("gpu_engine.jsonl"))
    parser.add_argument("--steps", type=int, default=10, help="timed training steps of large models")
    parser.add_argument("--no-before", dest="before", action="store_false", help="measure what is new alone")
    parser.add_argument("--checkpoint", action="store_true", help="also train with activations recomputed")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny == CUDA:
        parser.error("--tiny is for a CPU, and there is a GPU" if CUDA else "no GPU: check with --tiny")
    parts = args.parts or list(PARTS)
    if args.inside:
        with tempfile.TemporaryDirectory() as directory:
            args.short = Path(directory) / "short.json"
            args.short.write_text(json.dumps(SHORT))
            _inside(parts[0], args)
        return
    flags = [word for word in sys.argv[1:] if word not in PARTS]
    for part in parts:
        command = [sys.executable, "-m", "benchmarks.gpu_engine", part, *flags, "--inside"]
        try:
            subprocess.run(command, timeout=PART_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            say(args.out, part=part, error="out of time")


if __name__ == "__main__":
    main()
