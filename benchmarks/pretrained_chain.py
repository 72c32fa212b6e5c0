"""The whole mission on real models and real rows: teachers → student → stack → export, by debate.

The project's own commands do it; only their units, a fold of a model each, run first and side by side in
processes that share the card, since a small model leaves most of it idle. A unit continues from its last
checkpoint and a finished one does nothing, so the commands then only join what is there, and the same call
goes on wherever the one before it was cut off, also on another machine (:mod:`benchmarks.pretrained_parts`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cards import take_card
from benchmarks.pretrained_data import ukp_rows
from benchmarks.pretrained_scores import Judge, gap_cells, header, line
from data.console.command import format_table
from data.dataset import load_prepared, prepare
from data.files import read_parquet, write_json, write_text
from data.ids import align
from data.schema import Rows
from data.softlabels import is_store, read_store

if TYPE_CHECKING:
    from distill.runs.units import ModelSpec, Unit

TEACHERS = ("smollm2-135m", "gemma3-270m", "qwen25-coder-0.5b")
STUDENT = "smollm2-135m"
FOLDS = 4
RECIPE, RESULTS, TABLE = "recipe.yaml", "results.json", "results.md"


@dataclass(frozen=True)
class Plan:
    """What a chain is made of.

    Attributes
    ----------
    home : Path
        Gets rows, stores, stack and results.
    shared, models : Path
        Directories of the data and of the models.
    teachers : tuple of str
        Names of models.
    student : str
        The model that the student is, or is cut from.
    student_layers : int or None
        Layers that it keeps.
    rows : int
        As many rows only, from all debates alike (0: all).
    folds : int
        Of whole debates.
    epochs, lr, r : float, float, int
        Of the teachers.
    student_epochs, student_lr : float, float
    tokens : int
        A row's most tokens.
    step : int
        Rows a step.
    compiled : str
        Whether layers are compiled: true, false or auto.
    votes : bool
        Train on the shares of the votes instead of the set's own labels, and score on these as well.
    seed : int
    """

    home: Path
    shared: Path
    models: Path
    teachers: tuple[str, ...] = TEACHERS
    student: str = STUDENT
    student_layers: int | None = None
    rows: int = 0
    folds: int = FOLDS
    epochs: float = 2.0
    lr: float = 3e-4
    r: int = 32
    student_epochs: float = 2.0
    student_lr: float = 3e-4
    tokens: int = 512
    step: int = 16
    compiled: str = "auto"
    votes: bool = False
    seed: int = 0

    @property
    def data(self) -> Path:
        """The prepared rows; the stores lie beside them."""
        return self.home / "data"

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.home / RECIPE


def short(name: str) -> str:
    """A model's name as a run's: without what an override could not say."""
    return name.replace(".", "")


def recipe_of(plan: Plan) -> dict[str, Any]:
    """The recipe of teachers and student."""

    def model(name: str, epochs: float, lr: float, seed: int) -> dict[str, Any]:
        return {
            "backbone": {"path": str(plan.models / name), "precision": "nf4", "compile": plan.compiled},
            "lora": {"r": plan.r, "alpha": 2.0 * plan.r},
            "encode": {"max_length": plan.tokens},
            "train": {
                "epochs": epochs,
                "lr": lr,
                "rows_per_step": plan.step,
                "warmup": 0.05,
                "checkpoint_steps": 200,
                "gradient_checkpointing": "false",
                "seed": seed,
            },
        }

    teachers = {short(name): model(name, plan.epochs, plan.lr, plan.seed) for name in plan.teachers}
    student = model(plan.student, plan.student_epochs, plan.student_lr, plan.seed + 1000)
    student["backbone"]["first_layers"] = plan.student_layers
    student["distill"] = {"loss": "kl", "weight": 0.7, "leakage": "apart"}
    return {"teachers": teachers, "student": student}


def begin(plan: Plan) -> tuple[Rows, np.ndarray]:
    """Prepare the rows and write the recipe; return the rows and which are strict."""
    rows, strict = ukp_rows(plan.shared, plan.votes)
    if plan.rows:
        some = np.sort(np.random.default_rng(0).choice(len(rows), plan.rows, replace=False))
        rows, strict = rows.take(some), strict[some]
    prepare(rows, plan.data, plan.folds, seed=0)
    write_text(plan.recipe, json.dumps(recipe_of(plan), indent=1))  # JSON is YAML
    return rows, strict


def run_unit(unit: Unit) -> tuple[str, float]:
    """Run a unit in a worker; return its name and its seconds."""
    import torch

    from distill.quiet import quiet_transformers

    torch.set_num_threads(2)
    begun = time.perf_counter()
    with quiet_transformers():
        unit.run()
    return unit.name, time.perf_counter() - begun


def run_units(units: Sequence[Unit], processes: int, deadline: float) -> bool:
    """Run units side by side until the deadline (seconds of ``time.monotonic``); return whether all are done.

    What is cut off goes on from its last checkpoint next time.
    """
    left = [unit for unit in units if not unit.finished()]
    if not left:
        return True
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(left)), spawn, initializer=take_card)
    begun = [pool.submit(run_unit, unit) for unit in left]
    workers = list((pool._processes or {}).values())
    try:
        for future in as_completed(begun, timeout=max(1.0, deadline - time.monotonic())):
            name, seconds = future.result()
            print(f"{name}: {seconds:.0f} s", flush=True)
    except TimeoutError:
        print("out of time: the same command continues", flush=True)
        for worker in workers:
            worker.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        return False
    pool.shutdown()
    return True


def chain(plan: Plan, processes: int, seconds: float) -> bool:
    """Do what is left of the chain, for so many seconds at most; return whether it is finished."""
    from distill import export, student, teacher_oof
    from distill.recipe import load_recipe
    from distill.runs.units import ModelSpec, units_of
    from ensemble import stack

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    deadline = time.monotonic() + seconds
    rows, strict = begin(plan)
    loaded = load_prepared(plan.data)
    recipe = load_recipe(str(plan.recipe))
    assert recipe.student is not None
    teachers = [
        ModelSpec(name, model, plan.data, plan.data / name) for name, model in recipe.teachers.items()
    ]
    stores = tuple(model.out for model in teachers)
    leakage = recipe.student.distill.leakage
    learner = ModelSpec("student", recipe.student, plan.data, plan.data / "student", stores, leakage)
    common = ["--recipe", str(plan.recipe), "--data", str(plan.data)]

    def done_by(models: Sequence[ModelSpec], command: Any, *options: str, **parts: Any) -> bool:
        for model in models:
            model.plan(loaded).claim()
        units = [unit for model in models for unit in units_of(model, plan.folds, **parts)]
        # Fold by fold and not model by model, so that large and small ones run beside each other.
        units.sort(key=lambda unit: unit.part, reverse=True)
        return run_units(units, processes, deadline) and not command.main([*common, *options])

    if not done_by(teachers, teacher_oof, everywhere=True):
        return False
    report(plan.home, rows, strict)
    if not done_by([learner], student, "--teachers", *map(str, stores), final=True):
        return False
    report(plan.home, rows, strict)
    exported = plan.home / "exported"
    if not exported.exists():
        export.main(["--model", str(learner.out), "--out", str(exported), "--dtype", "bfloat16"])
    if time.monotonic() > deadline:
        return False
    if not (plan.data / "stack" / "stack.json").exists():
        stack.main(["--data", str(plan.data)])
    report(plan.home, rows, strict)
    return True


def report(
    home: Path,
    rows: Rows,
    strict: np.ndarray,
    beside: Mapping[str, np.ndarray] | None = None,
    pairs: Sequence[tuple[str, str]] = (),
) -> None:
    """Score what stands in a home, print the tables, and write them and the numbers.

    Parameters
    ----------
    beside : mapping of str to ndarray of shape (n, K), optional
        Further predictions to score, by name.
    pairs : sequence of (str, str)
        Names of predictions, whose difference in log-loss is told.
    """
    from benchmarks.pretrained_baselines import untrained

    _, folds = load_prepared(home / "data")
    judge = Judge.of(rows, folds, strict)
    found = {**untrained(rows, folds), **(beside or {})}
    stores = {path.name: read_store(path) for path in sorted((home / "data").iterdir()) if is_store(path)}
    trained = {
        name: store.probs[align(rows.row_ids, store.row_ids, name)]
        for name, store in stores.items()
        if store.manifest.get("label_kind", "oof") == "oof"
    }
    teachers = [probs for name, probs in trained.items() if stores[name].manifest["kind"] == "teacher"]
    if len(teachers) > 1:
        trained["teachers' mean"] = np.mean(teachers, axis=0)
    nested = home / "data" / "stack" / "predictions.parquet"
    if nested.exists():
        table = read_parquet(nested, "stack's predictions")
        probs = np.stack([table.column(name).to_numpy() for name in rows.classes.names], axis=1)
        trained["stack"] = probs[align(rows.row_ids, table.column("row_id").to_pylist(), str(nested))]
    found |= trained
    scores = {
        name: judge.score(probs, None if name == "lengths" else found["lengths"])
        for name, probs in found.items()
    }
    shown = format_table(header("lengths"), [line(name, score) for name, score in scores.items()])
    if "student" in trained:
        gain = -scores["teachers' mean" if len(teachers) > 1 else next(iter(trained))]["gap"]
        if gain > 0:
            shown += f"\n\nthe student keeps {-scores['student']['gap'] / gain:.0%} of its teachers' gain"
    gaps = {f"{one} - {other}": judge.gap(found[one], found[other]) for one, other in pairs}
    if gaps:
        cells = [[name, *gap_cells(gap)] for name, gap in gaps.items()]
        shown += "\n\n" + format_table(["log-loss", "difference", "95 %", "debates"], cells)
    recipe = json.loads((home / RECIPE).read_text(encoding="utf-8"))
    write_json(home / RESULTS, {"scores": scores, "differences": gaps, "recipe": recipe})
    write_text(home / TABLE, shown + "\n")
    print(shown, flush=True)
