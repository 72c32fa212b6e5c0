"""The whole mission on real models and real rows: teachers → student → stack → export, by debate.

Every model is a run of the project's own commands; only their units, a fold of a model each, run side by side
in processes that share the card, since a small model leaves most of it idle. A unit continues from its last
checkpoint, a finished one does nothing, and the commands then join what the units left. So the same call goes
on wherever the one before it was cut off, also on another machine
(:mod:`benchmarks.pretrained_parts`).
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cards import take_card
from benchmarks.pretrained_data import ukp_rows
from benchmarks.pretrained_scores import Judge, header, line
from data.command import format_table
from data.dataset import load_prepared, prepare
from data.files import write_json, write_text
from data.schema import Rows
from data.softlabels import read_store

TEACHERS = ("smollm2-135m", "gemma3-270m", "qwen25-coder-0.5b")
STUDENT = "smollm2-135m"
FOLDS = 4
RESULTS, TABLE = "results.json", "results.md"


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
    epochs: float = 2.0
    lr: float = 3e-4
    r: int = 32
    student_epochs: float = 2.0
    student_lr: float = 3e-4
    tokens: int = 512
    step: int = 32
    compiled: str = "false"
    votes: bool = False
    seed: int = 0

    @property
    def data(self) -> Path:
        """The prepared rows; the stores lie beside them."""
        return self.home / "data"

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.home / "recipe.yaml"


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
    prepare(rows, plan.data, FOLDS, seed=0)
    write_text(plan.recipe, json.dumps(recipe_of(plan), indent=1))  # JSON is YAML
    return rows, strict


def run_unit(unit: Any) -> tuple[str, float]:
    """Run a unit in a worker; return its name and its seconds."""
    import torch

    from distill.quiet import quiet_transformers

    torch.set_num_threads(1 if torch.cuda.is_available() else 2)
    begun = time.perf_counter()
    with quiet_transformers():
        unit.run()
    return unit.name, time.perf_counter() - begun


def run_units(units: Sequence[Any], processes: int, deadline: float) -> bool:
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
    from distill.config import load_recipe
    from distill.runs.crossfit import open_run
    from distill.runs.units import ModelSpec, units_of
    from ensemble import stack

    deadline = time.monotonic() + seconds
    rows, strict = begin(plan)
    _, folds = load_prepared(plan.data)
    recipe = load_recipe(str(plan.recipe))
    models = [ModelSpec(name, model, plan.data, plan.data / name) for name, model in recipe.teachers.items()]
    for model in models:
        open_run(model.plan((rows, folds)))
    units = [unit for model in models for unit in units_of(model, folds.n_folds, everywhere=True)]
    # Fold by fold and not model by model, so that large and small ones run beside each other.
    units.sort(key=lambda unit: unit.part)
    if not run_units(units, processes, deadline):
        return False
    common = ["--recipe", str(plan.recipe), "--data", str(plan.data)]
    assert not teacher_oof.main(common)

    assert recipe.student is not None
    stores = tuple(model.out for model in models)
    learner = ModelSpec(
        "student", recipe.student, plan.data, plan.data / "student", stores, recipe.student.distill.leakage
    )
    open_run(learner.plan((rows, folds)))
    if not run_units(units_of(learner, folds.n_folds, final=True), processes, deadline):
        return False
    assert not student.main([*common, "--teachers", *map(str, stores)])
    if not (plan.data / "stack" / "stack.json").exists():
        stack.main(["--data", str(plan.data)])
    report(plan, rows, strict)
    exported = plan.home / "exported"
    if not exported.exists():
        export.main(["--model", str(plan.data / "student"), "--out", str(exported), "--dtype", "bfloat16"])
    return True


def report(plan: Plan, rows: Rows, strict: np.ndarray) -> None:
    """Score what stands, print the table, and write it and the numbers."""
    from distill.race.probe import length_features, probe

    _, folds = load_prepared(plan.data)
    judge = Judge.of(rows, folds, strict)
    found = {"lengths": probe(length_features(rows), rows, folds)}
    for name in [*map(short, plan.teachers), "student"]:
        store = read_store(plan.data / name)
        place = {row_id: i for i, row_id in enumerate(store.row_ids)}
        found[name] = store.probs[[place[row_id] for row_id in rows.row_ids]]
    found["teachers' mean"] = np.mean([found[short(name)] for name in plan.teachers], axis=0)
    nested = plan.data / "stack" / "predictions.parquet"
    if nested.exists():
        import pyarrow.parquet as pq

        table = pq.read_table(nested)
        place = {row_id: i for i, row_id in enumerate(table.column("row_id").to_pylist())}
        columns = [table.column(name).to_numpy() for name in rows.classes.names]
        found["stack"] = np.stack(columns, axis=1)[[place[row_id] for row_id in rows.row_ids]]
    scores = {
        name: judge.score(probs, None if name == "lengths" else found["lengths"])
        for name, probs in found.items()
    }
    gains = {name: -score["gap"] for name, score in scores.items() if "gap" in score}
    kept = gains["student"] / gains["teachers' mean"]
    recipe = json.loads(plan.recipe.read_text(encoding="utf-8"))
    write_json(plan.home / RESULTS, {"scores": scores, "student_keeps": kept, "recipe": recipe})
    shown = format_table(header("lengths"), [line(name, score) for name, score in scores.items()])
    shown += f"\n\nthe student keeps {kept:.0%} of the teachers' mean's gain over lengths"
    write_text(plan.home / TABLE, shown + "\n")
    print(shown, flush=True)
