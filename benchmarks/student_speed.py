"""What a student saves where it is deployed, on one core: ``python -m benchmarks.student_speed``.

The ablation's shapes, with random weights, predict the same simulated rows in both orders, in turns. Times
are the process's own processor seconds, so that what else the machine does counts little. On a GPU models
this small wait for launches, not for arithmetic; ``benchmarks.gpu_training`` times the true shapes there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.distillation import Bench, backbone_config, predict
from benchmarks.distillation_plan import FULL, STUDENT, TEACHERS
from data.console.command import format_table
from distill.config import LoraConfig
from distill.model.backbone import add_adapters, load_base


def main() -> None:
    """Time every shape in turns, keep each one's fastest, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=40, help="rows to predict, about")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scale = replace(FULL, seeds=1, block=80, test_blocks=max(1, args.rows // 80), pretrain_steps=0)
    names = [*TEACHERS, STUDENT]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), scale)
        rows = bench.places(0)[2][: args.rows]
        models = {}
        for name in names:
            path = bench.backbone(name)
            base = load_base(backbone_config(path), str(path), 3)
            models[name] = add_adapters(base, LoraConfig(enabled=False), 0).cpu()
            predict(bench, name, models[name], rows[:2])
        best = dict.fromkeys(names, float("inf"))
        for _ in range(args.turns):
            for name, model in models.items():
                started = time.process_time()
                predict(bench, name, model, rows)
                best[name] = min(best[name], time.process_time() - started)
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    lines = [
        [
            name if name == STUDENT else f"teacher {name}",
            f"{sizes[name]:,}",
            f"{sizes[name] / sizes[STUDENT]:.1f}",
            f"{len(rows) / best[name]:.0f}",
            f"{best[name] / best[STUDENT]:.1f}",
        ]
        for name in names
    ]
    print(format_table(["", "parameters", "times the student's", "rows/s", "times slower"], lines))


if __name__ == "__main__":
    main()
