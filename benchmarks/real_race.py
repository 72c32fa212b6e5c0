"""Llama's family against Gemma's on real weights and rows: ``python -m benchmarks.real_race --out HOME``.

SmolLM2-135M (a Llama) and Gemma-3-270M under equal settings, and a SmolLM2 whose rope base is lost, as a
careless conversion loses it, on UKPConvArg1: examined by the doctor, probed, and raced twice, once sound and
once with the planted fault in Gemma's opponent, each learning rate tuned first. ``--only`` names steps, so
that they can run beside each other; the same command goes on with what is left. What is printed is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_race import examine, verdict
from benchmarks.pretrained_data import ukp_rows
from data.dataset import prepare
from data.files import write_text

SOUND, OTHER, FAULTY = "smollm2-135m", "gemma3-270m", "smollm2-135m-other-rope-base"
ROPE_BASE = 10_000.0
"""Of Llama-2, and what a configuration without the key means; SmolLM2 has 100,000."""
STEPS: dict[str, list[str]] = {
    "probe": ["--probe", "--backbones", SOUND, OTHER, FAULTY],
    "sound": ["--tune", "lr", "--backbones", SOUND, OTHER],
    "fault": ["--tune", "lr", "--backbones", FAULTY, OTHER],
}


def plant(healthy: Path, out: Path) -> None:
    """Copy a Llama with the rope base that a configuration means which does not name one."""
    if not out.exists():
        partial = out.with_name(f"{out.name}.partial")
        shutil.copytree(healthy, partial, dirs_exist_ok=True)
        config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        config.pop("rope_theta", None)
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": ROPE_BASE}
        (partial / "config.json").write_text(json.dumps(config), encoding="utf-8")
        partial.rename(out)


def recipe_of(paths: dict[str, Path]) -> dict[str, Any]:
    """Equal settings for every backbone."""
    train = {
        "epochs": 1.0,
        "lr": 3e-4,
        "rows_per_step": 16,
        "warmup": 0.05,
        "checkpoint_steps": 0,
        "gradient_checkpointing": "false",
    }
    shared = {"lora": {"r": 32, "alpha": 64.0}, "encode": {"max_length": 512}, "train": train}
    return {
        "teachers": {
            name: shared | {"backbone": {"path": str(path), "precision": "nf4"}}
            for name, path in paths.items()
        }
    }


def main() -> None:
    """Prepare, plant, examine, probe, race."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--shared", type=Path, required=True, help="directory of the data")
    add("--models", type=Path, required=True, help="parent of the models' directories")
    add("--out", type=Path, required=True, help="gets rows, recipe, races and what was printed")
    add("--only", nargs="+", choices=["doctor", *STEPS], default=["doctor", *STEPS])
    add("--rows", type=int, default=0, help="as many rows only, for a trial")
    add("rest", nargs="*", help="overrides of the recipe")
    args = parser.parse_args()
    data = args.out / "data"
    if not data.exists():
        rows = ukp_rows(args.shared)[0]
        prepare(rows.take(range(args.rows)) if args.rows else rows, data, 4, seed=0)
    paths = {SOUND: args.models / SOUND, OTHER: args.models / OTHER, FAULTY: args.out / FAULTY}
    plant(paths[SOUND], paths[FAULTY])
    recipe = args.out / "recipe.yaml"
    write_text(recipe, json.dumps(recipe_of(paths), indent=1))  # JSON is YAML
    if "doctor" in args.only:
        doctors = {name: examine(path) for name, path in paths.items()}
        found = "\n".join(f"{name}: {verdict(doctor)}" for name, doctor in doctors.items())
        write_text(args.out / "doctor.txt", found + "\n")
        print(found, flush=True)
    for step in (name for name in STEPS if name in args.only):
        command = [sys.executable, "-m", "distill.race", "--recipe", str(recipe), "--data", str(data)]
        command += ["--out", str(args.out / step), *STEPS[step], *args.rest]
        begun = time.monotonic()
        with (args.out / f"{step}.txt").open("w", encoding="utf-8") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ, check=False)
            file.write(f"\nexit {done.returncode} after {time.monotonic() - begun:.0f} s\n")
        print((args.out / f"{step}.txt").read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
