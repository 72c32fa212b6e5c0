"""A race at 100M parameters on one GPU, a fault planted in one backbone: ``python -m benchmarks.gpu_race``.

Makes a Llama-3.1- and a Gemma-2-architecture backbone of some 120M parameters, pretrains both on the rows'
text, and a third from the Llama whose rope scaling is lost, as a careless conversion loses it. The doctor
examines all three, then they race. Writes ``benchmarks/gpu_race.md`` and ``gpu_race.svg``. ``--data DIR``
takes prepared rows; without it, the simulated arena. Any size runs on a CPU too, for a trial of the script.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM

from data.arena import ArenaConfig, simulate_arena
from data.dataset import load_prepared, prepare
from data.encoding.template import Template
from data.files import write_text
from data.schema import Rows
from distill.config import TinyConfig
from distill.model.tiny import tiny_model_config, train_tokenizer
from distill.quiet import quiet_transformers
from distill.race import __main__ as race

HERE = Path(__file__).parent
WINDOW, BATCH = 256, 32
FAULTY = "llama-no-rope-scaling"


def texts_of(rows: Rows) -> list[str]:
    """The rows' texts as the template lays them out."""
    columns = (rows.table.column(name).to_pylist() for name in ("prompt", "response_a", "response_b"))
    template = Template()
    return ["".join(s.text for s in template.segments(*parts)) for parts in zip(*columns, strict=True)]


def make_backbone(family: str, shape: TinyConfig, texts: list[str], steps: int, out: Path) -> None:
    """Pretrain a backbone on the texts' next tokens; nothing is done if it is there."""
    if (out / "made").exists():
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(family, texts, shape.vocab_size)
    torch.manual_seed(0)
    attention = "eager" if family == "gemma2" else "sdpa"  # what cannot cap would drop the capping
    config = tiny_model_config(shape, tokenizer)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.to(device, torch.float32).train()
    stream = np.concatenate([e.ids for e in tokenizer.backend_tokenizer.encode_batch_fast(texts)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.05, fused=device == "cuda")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-4, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(steps):
        starts = rng.integers(len(stream) - WINDOW, size=BATCH)
        ids = torch.from_numpy(np.stack([stream[s : s + WINDOW] for s in starts]).astype(np.int64)).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    size = sum(p.numel() for p in model.parameters())
    ends = f"pretraining ends at {loss.item():.3f} nats after {time.perf_counter() - started:.0f} s"
    print(f"{family}: {size / 1e6:.0f}M parameters, {ends}", flush=True)
    with quiet_transformers():
        model.cpu().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "made").write_text(f"{size}\n")


def plant(healthy: Path, out: Path) -> None:
    """Copy a Llama without the rope scaling it was trained with."""
    shutil.copytree(healthy, out, dirs_exist_ok=True)
    config = json.loads((out / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (out / "config.json").write_text(json.dumps(config))


class Heard(StringIO):
    """Keeps what is printed and shows it too."""

    def write(self, text: str) -> int:
        """Keep and show."""
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


def examine(path: Path) -> subprocess.Popen[str]:
    """Start the doctor on a checkpoint; it needs a processor, not the GPU."""
    command = [sys.executable, "-m", "distill.doctor", str(path), "--json"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def verdict(doctor: subprocess.Popen[str]) -> str:
    """What a doctor found, once it is done."""
    printed = doctor.communicate()[0]
    wrong = [
        f"{r['check']} ({r['status']})" for r in json.loads(printed) if r["status"] not in {"pass", "warn"}
    ]
    return f"exit {doctor.returncode}; failed: {', '.join(wrong) or 'none'}"


def main() -> None:
    """Make, examine, race, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="prepared rows")
    parser.add_argument("--rows", type=int, default=12000, help="rows of the simulated arena")
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--pretrain-steps", type=int, default=800)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--scratch", type=Path, default=Path("runs/gpu-race"))
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--looks", type=int, default=8)
    parser.add_argument("--validation-rows", type=int, default=2000)
    parser.add_argument("--to", type=Path, default=HERE, help="directory of the page and the picture")
    parser.add_argument("--make-only", action="store_true", help="make the backbones, race later")
    args = parser.parse_args()
    data = args.data or args.scratch / "arena"
    if args.data is None:
        prepare(simulate_arena(ArenaConfig(n_rows=args.rows, seed=11)), data, n_folds=5)
    rows, _ = load_prepared(data)
    texts = texts_of(rows)
    paths = {name: args.scratch / name for name in ("llama", "gemma2", FAULTY)}
    for family in ("llama", "gemma2"):
        shape = TinyConfig(
            family, args.width, 3 * args.width, args.layers, args.width // 64, max(1, args.width // 128), 8192
        )
        make_backbone(family, shape, texts, args.pretrain_steps, paths[family])
    plant(paths["llama"], paths[FAULTY])
    if args.make_only:
        return
    doctors = {name: examine(path) for name, path in paths.items()}  # while the race goes on
    model = {
        "backbone": {"precision": args.precision},
        "lora": {"r": 16, "alpha": 32},
        "encode": {"max_length": 512},
        "train": {
            "epochs": args.epochs,
            "lr": args.lr,
            "rows_per_step": 32,
            "micro_rows": 32,
            "checkpoint_steps": 0,
        },
    }
    recipe = args.scratch / "recipe.yaml"
    models = {name: model | {"backbone": model["backbone"] | {"path": str(p)}} for name, p in paths.items()}
    recipe.write_text(yaml.safe_dump({"teachers": models}))
    started = time.perf_counter()
    heard = Heard()
    options = ["--looks", str(args.looks), "--validation-rows", str(args.validation_rows)]
    place = args.scratch / "race"
    with redirect_stdout(heard):
        race.main(["--recipe", str(recipe), "--data", str(data), "--out", str(place), *options])
    minutes = (time.perf_counter() - started) / 60
    examined = {name: verdict(doctor) for name, doctor in doctors.items()}
    write_text(args.to / "gpu_race.svg", (place / "race.svg").read_text())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [f"| {name} | {seen} |" for name, seen in examined.items()]
    table = "\n".join(["| backbone | doctor |", "|---|---|", *lines])
    text = (
        "# A race with a planted fault\n\n"
        f"Made by `python -m benchmarks.gpu_race` on {device}, torch {torch.__version__}: {len(rows):,} "
        f"rows, width {args.width}, {args.layers} layers, {minutes:.1f} minutes of racing.\n\n{table}\n\n"
        f"```\n{heard.getvalue().rsplit(chr(10), 3)[0].strip()}\n```\n\n![learning curves](gpu_race.svg)\n"
    )
    write_text(args.to / "gpu_race.md", text)
    print(table, args.to / "gpu_race.md", sep="\n")


if __name__ == "__main__":
    main()
