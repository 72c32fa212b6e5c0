"""Every fault the doctor knows: planted, found, and what it costs: ``python -m benchmarks.doctor``.

Plants each fault of ``tests/planted.py`` into healthy tiny checkpoints, recipes, runs and data, and asks the
doctor; then trains with and without the faults of ``distill/cost.py`` on the simulated arena. Writes
``benchmarks/doctor.md``. About ten minutes on two idle cores; ``--no-cost`` leaves the trainings out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.encoding.template import Template
from data.files import write_text
from distill import teacher_oof
from distill.config import TinyConfig
from distill.doctor.cost import Cost, measure, open_bench
from distill.doctor.examine import examine
from distill.doctor.faults import FAULT_ARMS
from distill.doctor.subject import open_subjects
from distill.model.tiny import tiny_backbone
from distill.quiet import quiet_transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))
from encoders import ENCODERS, tiny_encoder  # noqa: E402
from planted import FAULTS, Healthy, find  # noqa: E402
from recipes import TINY_RECIPE  # noqa: E402


def make_healthy(out: Path) -> Healthy:
    """Make healthy checkpoints, a finished run and its data."""
    recipe, data = out / "tiny.yaml", out / "arena"
    recipe.write_text(TINY_RECIPE, encoding="utf-8")
    prepare(simulate_arena(ArenaConfig(n_rows=96, seed=1)), data, n_folds=2, seed=1)
    teacher_oof.main(["--recipe", str(recipe), "--data", str(data), "--only", "llama"])
    rows = simulate_arena(ArenaConfig(n_rows=24, seed=5))

    def checkpoint(family: str) -> Path:
        tiny = TinyConfig(
            family=family, hidden_size=64, intermediate_size=64, layers=2, vocab_size=400, pretrain_steps=0
        )
        return tiny_backbone(tiny, rows, Template(), 0, out / "cache")

    return Healthy(checkpoint("llama"), checkpoint("gemma2"), data / "llama", data)


def healthy_lines(healthy: Healthy, out: Path) -> list[str]:
    """A table line for each healthy family."""
    targets = {"Llama-3.1": healthy.llama, "Gemma-2": healthy.gemma2}
    targets |= {family: tiny_encoder(family, out / family) for family in ENCODERS}
    targets |= {"finished run": healthy.run, "data": healthy.data}
    lines = ["| healthy | passed | to know | failed | not run | seconds |", "|---|---|---|---|---|---|"]
    for number, (name, path) in enumerate(targets.items()):
        started = time.perf_counter()
        (subject,) = open_subjects(str(path), out / f"healthy-{number}")
        found = [r.status for r in examine(subject)]
        seconds = time.perf_counter() - started
        counts = " | ".join(str(found.count(status)) for status in ("pass", "warn", "fail", "error"))
        lines.append(f"| {name} | {counts} | {seconds:.0f} |")
    return lines


def fault_lines(healthy: Healthy, out: Path) -> list[str]:
    """A table line for each planted fault: was it found, and what was seen."""
    lines = ["| planted fault | check | found | seen |", "|---|---|---|---|"]
    for number, planted in enumerate(FAULTS):
        results = find(planted, healthy, out / f"fault-{number}")
        hit = [r for r in results if r.status == planted.status]
        seen = hit[0].seen.replace("|", "/").replace(str(out), "…") if hit else ""
        lines.append(f"| {planted.name} | `{planted.check}` | {'yes' if hit else '**no**'} | {seen} |")
    return lines


def cost_line(cost: Cost) -> str:
    """A measured cost as a table line."""
    low, high = cost.difference - cost.half, cost.difference + cost.half
    bold = "**" if low > 0 or high < 0 else ""
    return (
        f"| {cost.fault} | `{cost.check}` | {cost.clean:.4f} | {cost.faulty:.4f} | "
        f"{bold}{cost.difference:+.4f}{bold} | {low:+.4f} to {high:+.4f} |"
    )


def main() -> None:
    """Run it all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="trainings at once")
    parser.add_argument("--no-cost", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        out = Path(scratch)
        healthy = make_healthy(out)
        parts = [
            "# What the doctor finds, and what it costs",
            f"Made by `python -m benchmarks.doctor --rows {args.rows} --seeds {args.seeds}`.",
            "## Healthy",
            "\n".join(healthy_lines(healthy, out)),
            "## Planted",
            "\n".join(fault_lines(healthy, out)),
        ]
        print("\n\n".join(parts), flush=True)
        if not args.no_cost:
            bench = open_bench(None, out / "bench", args.rows)
            lines = [
                "| fault | check | without | with | difference | 95 % interval |",
                "|---|---|---|---|---|---|",
            ]
            for cost in measure(bench, FAULT_ARMS, args.seeds, args.workers):
                lines.append(cost_line(cost))
                print(lines[-1], flush=True)
            parts += [
                "## Cost",
                f"Log-loss on {len(bench.held_out)} held-out rows of the simulated arena ({args.rows} rows, "
                f"{args.seeds} seeds, tiny backbones of the true architectures), trained with and without "
                "the fault; same rows, same order. Intervals cover rows (grouped by prompt) and seeds; bold "
                "where they leave zero out. Tiny models say which faults can explain a gap and which cannot, "
                "not their size at 8B.",
                "\n".join(lines),
            ]
    write_text(HERE / "doctor.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
