"""What the ablation of distillation trains: its sizes, and the jobs of each of its questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from benchmarks.trainings import Job

FOLDS = 4
TEACHERS = ("a", "b", "c")
STUDENT = "student"


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    block: int = 1500
    seeds: int = 5
    test_blocks: int = 4
    shapes: dict[str, dict[str, int]] = field(default_factory=dict)
    pretrain_steps: int = 1200
    pretrain_rows: int = 6000
    rows_per_step: int = 96
    tune: dict[str, list[list[float]]] = field(default_factory=dict)
    temperatures: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 10.0)
    weights: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.0)


def _shape(hidden: int, layers: int, vocab: int) -> dict[str, int]:
    heads = {"heads": 4, "kv_heads": 2}
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "layers": layers,
        "vocab_size": vocab,
        **heads,
    }


FULL = Scale(
    shapes={
        "a": _shape(256, 4, 2048),
        "b": _shape(192, 5, 1024),
        "c": _shape(320, 3, 3072),
        STUDENT: _shape(128, 2, 1024),
    },
    tune={
        "teacher": [[2.5e-4, 4], [5e-4, 4], [1e-3, 4], [2e-3, 4], [5e-4, 6]],
        STUDENT: [[5e-4, 4], [1e-3, 4], [2e-3, 4], [4e-3, 4], [1e-3, 6]],
    },
)
SMOKE = Scale(
    block=24, seeds=2, pretrain_steps=5, pretrain_rows=60, rows_per_step=16,
    shapes={name: _shape(32, 1, 300 + 10 * i) for i, name in enumerate(("a", "b", "c", STUDENT))},
    tune={"teacher": [[2e-3, 1]], STUDENT: [[2e-3, 1]]}, temperatures=(1.0, 5.0), weights=(0.5, 1.0),
)  # fmt: skip


def teacher_key(name: str, seed: int, without: tuple[int, ...]) -> str:
    """Name of the teacher trained without some of a seed's folds."""
    return f"teacher-{name}-s{seed}-without-{'-'.join(map(str, without))}"


def teachers(scale: Scale, names: str) -> list[Job]:
    """Cross-fitted teachers, one a fold and seed."""
    return [
        Job(teacher_key(t, s, (f,)), "teacher", s, {"teacher": t, "without": [f]})
        for s in range(scale.seeds)
        for t in names
        for f in range(FOLDS)
    ]


def students(scale: Scale, question: str, name: str, names: str = "a", **spec: Any) -> list[Job]:
    """One student a seed, taught by all the fold models of some teachers."""
    return [
        Job(
            f"{question}/{name}/s{s}",
            "student",
            s,
            {"question": question, "name": name, "teachers": names, **spec},
            tuple(teacher_key(t, s, (f,)) for t in names for f in range(FOLDS)),
        )
        for s in range(scale.seeds)
    ]


def label_jobs(scale: Scale) -> list[Job]:
    """Students on each kind of labels."""
    jobs = students(scale, "labels", "in_sample", labels="in_sample")
    jobs += students(scale, "labels", "fold_mean", labels="fold_mean")
    return jobs + students(scale, "labels", "smoothing .1", "", distill={"loss": "smoothing"})


def teacher_jobs(scale: Scale) -> list[Job]:
    """Students of one, two and three teachers, mixed in several ways."""
    jobs = teachers(scale, "bc") + students(scale, "teachers", "a + b", "ab")
    jobs += students(scale, "teachers", "a + b + c", "abc")
    for name, distill in (
        ("fitted", {"weighting": "fitted"}),
        ("confidence", {"weighting": "confidence"}),
        ("log space", {"mixing": "log"}),
    ):
        jobs += students(scale, "teachers", f"a + b + c, {name}", "abc", distill=distill)
    return jobs


def loss_jobs(scale: Scale) -> list[Job]:
    """Students by every loss; one teacher, as in all of the grid."""
    jobs = []
    for loss in ("blackpearl", "wsdm1", "wsdm3", "mse", "corrected"):
        jobs += students(scale, "loss", loss, distill={"loss": loss})
    return jobs + students(scale, "loss", "smoothing .1, no teacher", "", distill={"loss": "smoothing"})


def five_term_jobs(scale: Scale) -> list[Job]:
    """BlackPearl's loss as it was meant, with two teachers, beside kl with the same two."""
    jobs = teachers(scale, "b") + students(scale, "loss", "kl, two teachers", "ab")
    return jobs + students(scale, "loss", "blackpearl, two teachers", "ab", distill={"loss": "blackpearl"})


def swap_jobs(scale: Scale) -> list[Job]:
    """Students that see the orders of a pair in several ways."""
    one = {"both_orders": False}
    jobs = students(scale, "swap", "random order", train=one)
    jobs += students(scale, "swap", "random order, twice the epochs", train=one, longer=2)
    return jobs + students(scale, "swap", "one order", train=one | {"random_order": False})


def grid_jobs(scale: Scale) -> list[Job]:
    """Students at every temperature and weight, a whole grid a seed."""
    cells = [
        students(scale, "grid", f"T={t:g} w={w:g}", distill={"temperature": t, "weight": w})
        for t in scale.temperatures
        for w in scale.weights
    ]
    return [cell[s] for s in range(scale.seeds) for cell in cells]


def strict_jobs(scale: Scale) -> list[Job]:
    """Students scored on fold 0 by teachers that saw it, that did not, and that did at the same size."""
    jobs = []
    for s in range(scale.seeds):
        pairs = {p: teacher_key("a", s, p) for p in combinations(range(FOLDS), 2)}
        jobs += [Job(k, "teacher", s, {"teacher": "a", "without": list(p)}) for p, k in pairs.items()]
        single = tuple(teacher_key("a", s, (f,)) for f in range(1, FOLDS))
        for name, labels, needs in (
            ("hard labels", "oof", ()),
            ("standard", "oof", single),
            ("strict", "strict", tuple(pairs.values())),
            ("standard, teachers of strict's size", "strict_size", tuple(pairs.values())),
        ):
            spec = {"question": "leakage", "name": name, "labels": labels, "held_out": 0}
            spec |= {"teachers": "a"} if needs else {"teachers": "", "distill": {"loss": "hard"}}
            jobs.append(Job(f"leakage/{name}/s{s}", "student", s, spec, needs))
    return jobs


PARTS = {
    "labels": label_jobs,
    "teachers": teacher_jobs,
    "losses": loss_jobs,
    "swap": swap_jobs,
    "strict": strict_jobs,
    "grid": grid_jobs,
    "five-term": five_term_jobs,
}


def chosen_jobs(scale: Scale, parts: Sequence[str]) -> list[Job]:
    """Every job of some parts, in the order of :data:`PARTS`, each once.

    One teacher and the two students that all is compared with come first, whatever the parts.
    """
    jobs = teachers(scale, "a") + students(scale, "labels", "hard", "", distill={"loss": "hard"})
    jobs += students(scale, "labels", "oof")
    for part, make in PARTS.items():
        jobs += make(scale) if part in parts else []
    return list({job.key: job for job in jobs}.values())
