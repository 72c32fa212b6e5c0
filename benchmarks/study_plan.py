"""What is trained to settle the questions on real models: ``python -m benchmarks.study``, part by part.

Four folds of three debates each. A teacher without fold i is scored on it; one without folds i and j labels
fold j for the student that is scored on fold i, so that neither has seen the debates of the score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from benchmarks.trainings import Job

FOLDS = 4
MODELS = ("smollm2-135m", "gemma3-270m", "qwen25-coder-0.5b")
LLAMA, GEMMA, QWEN = MODELS
STUDENT = "student"
LAYERS = 10
"""Of the first model, which its student keeps."""
RATES = {
    LLAMA: (3e-4, 1.5e-4),
    GEMMA: (7.5e-5, 1.5e-4, 3.75e-5),
    QWEN: (1e-4, 2e-4, 5e-5),
    STUDENT: (1e-3, 5e-4, 2e-3),
}
"""Learning rates that are tried, one epoch each, on every fold; the first is the usual one."""
FEW = 4000
"""Rows of the questions that need many trainings of a whole model."""


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes
    ----------
    seeds : int
    chosen : dict of str to float
        Learning rates of the teachers and the student.
    layers : int
        Of the student.
    epochs : float
    """

    seeds: int
    chosen: dict[str, float]
    layers: int = LAYERS
    epochs: float = 1.0


def fit(key: str, kind: str, seed: int, needs: Sequence[str] = (), **spec: Any) -> Job:
    """A training; ``spec`` is what :func:`benchmarks.study.run_fit` reads."""
    return Job(key, kind, seed, spec, tuple(needs))


def teacher(
    model: str, without: Sequence[int], lr: float, epochs: float, rows: int = 0, seed: int = 0
) -> Job:
    """A teacher that did not see some folds, and predicts all rows."""
    some = f"-rows{rows}" if rows else ""
    key = f"teacher/{model}{some}-lr{lr:g}-e{epochs:g}-s{seed}-without-{'-'.join(map(str, without))}"
    spec = {"model": model, "without": list(without), "lr": lr, "epochs": epochs, "rows": rows}
    return fit(key, f"teacher {model}", seed, **spec, everywhere=True, precision="nf4")


def teachers(size: Size, model: str, rows: int = 0, seed: int = 0) -> dict[tuple[int, ...], Job]:
    """A model's teachers by the folds that they did not see: each fold, and each two."""
    folds = [*((i,) for i in range(FOLDS)), *combinations(range(FOLDS), 2)]
    rate = size.chosen[model]
    return {without: teacher(model, without, rate, size.epochs, rows, seed) for without in folds}


def tried(size: Size, who: str) -> dict[float, list[Job]]:
    """What is trained to choose a learning rate, a training a fold, by rate."""
    if who != STUDENT:
        return {lr: [teacher(who, (i,), lr, size.epochs) for i in range(FOLDS)] for lr in RATES[who]}
    sizes = {lr: replace(size, chosen=size.chosen | {STUDENT: lr}) for lr in RATES[STUDENT]}
    return {lr: list(students(other, f"tune{lr:g}", "hard", 1)) for lr, other in sizes.items()}


def rate_losses(size: Size, who: str, losses: Mapping[str, float]) -> dict[float, list[float]]:
    """Log-losses by learning rate, on the folds on which every rate that was tried at all has one."""
    every = {
        lr: {i: losses[job.key] for i, job in enumerate(jobs) if job.key in losses}
        for lr, jobs in tried(size, who).items()
    }
    known = {lr: found for lr, found in every.items() if found}
    common = [i for i in range(FOLDS) if all(i in found for found in known.values())]
    return {lr: [found[i] for i in common] for lr, found in sorted(known.items())}


def tune_jobs(size: Size) -> list[Job]:
    """Each model at several learning rates on every fold, the dear ones first."""
    who = (QWEN, GEMMA, LLAMA, STUDENT)
    return [job for name in who for jobs in tried(size, name).values() for job in jobs]


def teacher_jobs(size: Size) -> list[Job]:
    """Teachers without a fold, all models, then those of two models without two folds."""
    every = [job for model in MODELS for job in teachers(size, model).values()]
    known = [job for job in every if len(job.spec["without"]) == 1 or job.spec["model"] != QWEN]
    return sorted(known, key=lambda job: (len(job.spec["without"]), -MODELS.index(job.spec["model"])))


def again_jobs(size: Size) -> list[Job]:
    """The models' teachers without a fold once more, from another seed."""
    every = [job for model in reversed(MODELS) for job in teachers(size, model, seed=1).values()]
    return [job for job in every if len(job.spec["without"]) == 1]


LABELS: dict[str, dict[str, Any]] = {
    "hard": {},
    "strict, one teacher": {"teachers": [LLAMA], "labels": "strict"},
    "strict, three teachers": {"teachers": list(MODELS), "labels": "strict"},
    "votes": {"votes": True},
    "strict, two teachers": {"teachers": [LLAMA, GEMMA], "labels": "strict"},
    "apart": {"teachers": [LLAMA], "labels": "apart"},
    "corrected": {"teachers": [LLAMA], "labels": "strict", "distill": {"loss": "corrected"}},
    "smoothing .1": {"distill": {"loss": "smoothing"}},
    "fold-mean": {"teachers": [LLAMA], "labels": "fold_mean"},
    "strict, calibrated mean of three": {"teachers": list(MODELS), "labels": "strict", "calibrated": True},
    "standard": {"teachers": [LLAMA], "labels": "standard"},
}
"""Whom a student learns from. Teachers of all but ``standard`` never saw the debates that it is scored on."""
KINDS = ("votes", "apart", "corrected", "smoothing .1", "standard")
"""Of these, the ones that are asked by themselves, after who teaches and how many."""


def students(size: Size, question: str, name: str, seeds: int, rows: int = 0, **spec: Any) -> Iterator[Job]:
    """A student a seed and scored fold."""
    for seed in range(seeds):
        for held in range(FOLDS):
            needs = [
                job.key
                for model in spec.get("teachers", ())
                for without, job in teachers(size, model, rows).items()
                if uses(spec["labels"], held, without)
            ]
            whole = {"model": LLAMA, "layers": size.layers, "precision": "bf16", "without": [held]}
            whole |= {"lr": size.chosen[STUDENT], "epochs": size.epochs, "step": 32, "rows": rows}
            yield fit(f"{question}/{name}/s{seed}-f{held}", "student", seed, needs, **(whole | spec))


def uses(labels: str, held: int, without: tuple[int, ...]) -> bool:
    """Whether the student scored on a fold learns from the teacher without some."""
    if labels == "apart":
        return without == (held,)
    if labels == "standard":
        return len(without) == 1 and without != (held,)
    return len(without) == 2 and held in without


def label_jobs(size: Size) -> list[Job]:
    """Students of no, one and two teachers, seed by seed."""
    jobs = [
        job
        for name, spec in LABELS.items()
        if QWEN not in spec.get("teachers", ()) and name not in KINDS
        for job in students(size, "labels", name, size.seeds, **spec)
    ]
    return sorted(jobs, key=lambda job: job.seed)


def kind_jobs(size: Size) -> list[Job]:
    """Students on the other kinds of labels."""
    jobs = [job for name in KINDS for job in students(size, "labels", name, size.seeds, **LABELS[name])]
    return sorted(jobs, key=lambda job: job.seed)


def third_jobs(size: Size) -> list[Job]:
    """The dearest teachers without two folds, and students of all three."""
    jobs = list(teachers(size, QWEN).values())
    for name, spec in LABELS.items():
        if QWEN in spec.get("teachers", ()):
            jobs += students(size, "labels", name, size.seeds, **spec)
    return sorted(jobs, key=lambda job: job.seed)


SOUP = 3
"""Seeds whose weights are averaged."""


def average_jobs(size: Size) -> list[Job]:
    """Students of several seeds averaged in the space of weights, by what they learn from."""
    jobs = []
    for name in ("hard", "strict, two teachers"):
        spec = LABELS[name] | {"average": SOUP}
        jobs += [replace(job, kind="average") for job in students(size, "average", name, 1, **spec)]
    return jobs


LABELLERS = (LLAMA, GEMMA)
PSEUDO: dict[str, dict[str, Any]] = {
    "labels of two folds": {"pseudo": "left out"},
    "a third labelled by teachers": {"pseudo": 1.0},
    "the surer half of a third": {"pseudo": 0.5},
    "labels of three folds": {},
}
"""What is done with debates of unknown labels: teachers without these and the scored ones label them."""


def pseudo_jobs(size: Size) -> list[Job]:
    """Students on the labels of two folds, and the third without its labels."""
    jobs = []
    for name, spec in PSEUDO.items():
        for job in students(size, "pseudo", name, size.seeds, **spec):
            (held,) = job.spec["without"]
            third = (held + 1) % FOLDS
            more: dict[str, Any] = {}
            if spec.get("pseudo") == "left out":
                more = {"without": [held, third], "scored": [held]}
            elif spec:
                more = {"third": third}
            both = (min(held, third), max(held, third))
            needs = [teachers(size, model)[both].key for model in LABELLERS] if "third" in more else []
            jobs.append(replace(job, spec=job.spec | more, needs=tuple(needs)))
    return sorted(jobs, key=lambda job: job.seed)


def grid_jobs(size: Size) -> list[Job]:
    """Students of three teachers at every temperature and weight."""
    jobs = []
    for temperature in (1.0, 2.0, 4.0):
        for weight in (0.4, 0.7, 1.0):
            distill = {"temperature": temperature, "weight": weight}
            spec = LABELS["strict, three teachers"] | {"distill": distill}
            jobs += students(size, "grid", f"T={temperature:g} w={weight:g}", min(2, size.seeds), **spec)
    return sorted(jobs, key=lambda job: job.seed)


CURVE = {500: 4.0, 1500: 2.0, 4000: 1.5}
"""Epochs of teachers and students by rows, so that the fewest rows still make some steps."""


def curve_jobs(size: Size) -> list[Job]:
    """Students with and without a teacher on few rows, their teachers on the same few."""
    jobs = []
    for rows, epochs in CURVE.items():
        less = replace(size, epochs=epochs)
        jobs += teachers(less, LLAMA, rows).values()
        for name in ("hard", "strict, one teacher"):
            spec = LABELS[name] | {"step": 16}
            jobs += students(less, f"curve{rows}", name, size.seeds, rows, **spec)
    return sorted(jobs, key=lambda job: (not job.kind.startswith("teacher"), job.seed))


PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16", "moved": ["nf4", "nf4 fp8", "int8", "fp8"]},
    "nf4": {"precision": "nf4", "moved": ["bf16", "nf4 fp8"]},
    "nf4 fp8": {"precision": "nf4", "compute": "fp8", "moved": ["nf4"]},
    "int8": {"precision": "int8"},
    "fp8": {"precision": "fp8", "moved": ["bf16"]},
}


def few(size: Size, question: str, model: str, options: dict[str, dict[str, Any]]) -> list[Job]:
    """Whole models on few rows, one scored fold a seed, the same for all options."""
    jobs = []
    for name, spec in options.items():
        for seed in range(size.seeds):
            whole = {
                "model": model,
                "without": [seed % FOLDS],
                "lr": size.chosen[model] * spec.get("times", 1.0),
                "epochs": 1.0,
                "rows": FEW,
            }
            key = f"{question}/{model}/{name}/s{seed}"
            jobs.append(fit(key, f"few {model}", seed, **({"precision": "nf4"} | whole | spec)))
    return sorted(jobs, key=lambda job: job.seed)


def precision_jobs(size: Size) -> list[Job]:
    """The same model trained on the base in every precision, and moved to others."""
    return few(size, "precision", LLAMA, PRECISIONS)


FAULTS = {
    GEMMA: ("no BOS", "two BOS", "BOS in mid-text", "no BOS, predicting", "cut on the right at 64 tokens"),
    LLAMA: ("no BOS", "two BOS", "cut on the right at 64 tokens"),
}


def fault_jobs(size: Size) -> list[Job]:
    """Faults of the doctor's list planted into real models, beside the sound ones."""
    jobs = []
    for model, names in FAULTS.items():
        options: dict[str, dict[str, Any]] = {"sound": {}} | {name: {"fault": name} for name in names}
        options["one order only"] = {"train": {"both_orders": False}}
        options["rate ten times too small"] = {"lr": size.chosen[model] / 10}
        jobs += few(size, "faults", model, options)
    return sorted(jobs, key=lambda job: job.seed)


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one order, twice the epochs": {"train": {"both_orders": False}, "epochs": 2.0},
    "label smoothing .1": {"distill": {"loss": "smoothing"}},
    "adapter dropout .1": {"lora": {"dropout": 0.1}},
    "weight decay .1": {"train": {"weight_decay": 0.1}},
    "head at ten times the rate": {"head": 10.0},
    "rank 8": {"lora": {"r": 8, "alpha": 16.0}},
    "rank 128": {"lora": {"r": 128, "alpha": 256.0}},
    "alpha 362, rsLoRA's": {"lora": {"alpha": 362.0}},
    "alpha 1024, LoRA+'s 16": {"lora": {"alpha": 1024.0}},
    "alpha 16": {"lora": {"alpha": 16.0}},
    "upper half only": {"lora": {"first_layer": 0.5}},
    "two epochs": {"epochs": 2.0},
    "step of 64 rows, twice the rate": {"step": 64, "times": 2.0},
    "half the rate": {"times": 0.5},
    "average of the weights, .99 a step": {"ema": 0.99},
    "noise on embeddings, 5": {"noise": 5.0},
    "weights moved up the momentum, .05": {"adversarial": 0.05},
    "rates falling by .95 a layer": {
        "peft": {"alpha_pattern": {rf"layers\.{i}\..*": 64 * 0.95 ** (29 - i) for i in range(30)}}
    },
    "another template, winner": {"template": "winner"},
    "winner, the words' own logits": {"template": "winner", "head_of": "tokens"},
    "winner, a head that starts as the words": {"template": "winner", "start": "words"},
    "bf16 base": {"precision": "bf16"},
    "bf16 base, DoRA": {"precision": "bf16", "peft": {"use_dora": True}},
    "bf16 base, PiSSA": {"precision": "bf16", "peft": {"init_lora_weights": "pissa_niter_4"}},
}
"""One change each. DoRA and PiSSA stand on an unquantised base, which stands beside them, heads of words on
a template that ends in a question."""


def option_jobs(size: Size) -> list[Job]:
    """What else a recipe may ask for, one change at a time."""
    return few(size, "options", LLAMA, OPTIONS)


PARTS = {
    "tune": tune_jobs,
    "teachers": teacher_jobs,
    "labels": label_jobs,
    "third": third_jobs,
    "again": again_jobs,
    "kinds": kind_jobs,
    "precision": precision_jobs,
    "faults": fault_jobs,
    "curve": curve_jobs,
    "options": option_jobs,
    "pseudo": pseudo_jobs,
    "average": average_jobs,
    "grid": grid_jobs,
}


def jobs_of(parts: Sequence[str], size: Size) -> dict[str, Job]:
    """All trainings of some parts, in their order, by key."""
    return {job.key: job for part in parts for job in PARTS[part](size)}
