"""Checks of what is trained and at what rate, by a rehearsal: a few real steps on the shallow copy."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import TrainerCallback

from data.encoding.encode import Encoded
from distill.architectures import architecture, by_hub_name
from distill.config import BackboneConfig, LoraConfig, TrainConfig
from distill.doctor.finding import Finding, check, failed, passed, warned
from distill.doctor.small import LENGTHS
from distill.doctor.subject import Subject
from distill.kernels.choice import attention_for
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base
from distill.model.classifier import Classifier
from distill.packing.examples import Examples
from distill.training.trainer import train

STEPS = 4
"""Before the last of them a zero head, then zero B matrices, have let gradient through to every adapter."""
ROWS_A_STEP = 4
RATES = (5e-6, 1e-3)
"""Effective adapter rates alpha/r x lr that published recipes stay within, at billions of parameters."""
MANY_FROZEN = 0.25
RELOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base, adapter, n = sys.argv[1:4]
model = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=int(n), dtype=torch.float32, attn_implementation="eager")
torch.nn.init.zeros_(model.score.weight)
model = PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    out = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].tolist()
           for ids in json.load(sys.stdin)]
json.dump(out, sys.stdout)
"""


@dataclass
class Rehearsal:
    """What a few real training steps on the shallow copy showed.

    Attributes
    ----------
    first_loss : float
    rates : list of float
        Every optimizer group's learning rate before the schedule.
    frozen : list of str
        Parameters that should be trained and are not trainable.
    unmoved : list of str
        Trainable parameters that the steps left as they were.
    trainable, total : int
        Parameters.
    """

    first_loss: float
    rates: list[float]
    frozen: list[str]
    unmoved: list[str]
    trainable: int
    total: int


def lora_of(subject: Subject) -> LoraConfig:
    """The declared adapters, without dropout so that repeated passes compare."""
    return replace(subject.model.lora, dropout=0.0)


def few_examples(subject: Subject, n: int = STEPS * ROWS_A_STEP) -> Examples:
    """Random token rows inside the shallow copy's vocabulary: one order, three classes."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 24, size=n)
    top = min(2000, json.loads((Path(subject.small) / "config.json").read_text())["vocab_size"])
    ids = rng.integers(10, top, size=int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    targets = np.eye(3)[rng.integers(3, size=n)]
    return Examples(Encoded(ids, offsets, 1, 0), targets, [0, 1, 2], 0)


def _copy(subject: Subject) -> BackboneConfig:
    """The declared backbone, with the shallow copy in its place and a head of its own."""
    declared = subject.model.backbone
    return replace(declared, path=subject.small, tiny=None, revision=None, head="score", shard=False)


def small_classifier(subject: Subject) -> Classifier:
    """The shallow copy with the declared adapters and a zero head, in float32, whatever the declared head."""
    backbone = replace(_copy(subject), precision="fp32", attention="auto", compile="auto")
    return add_adapters(load_base(backbone, subject.small, 3), lora_of(subject), 0)


def rehearse(subject: Subject) -> Rehearsal:
    """Train the shallow copy for a few steps, by the real path, and record what moved."""
    if hasattr(subject, "_rehearsal"):
        return subject._rehearsal
    classifier = small_classifier(subject)
    named = dict(classifier.named_parameters())
    wanted = {n for n in named if "lora_" in n or ("score" in n and "original" not in n)}
    if not subject.model.lora.enabled:
        wanted = set(named)
    before = {n: p.detach().clone() for n, p in named.items() if p.requires_grad}
    losses: list[float] = []
    rates: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            groups = kwargs["optimizer"].param_groups
            rates.extend(float(g.get("initial_lr", g["lr"])) for g in groups if len(g["params"]))

    def loss(logits: Any, batch: dict[str, Any]) -> Any:
        found = label_loss(logits, batch)
        losses.append(float(found.detach().mean()))
        return found

    config = replace(_rehearsal_config(), lr=subject.model.train.lr, head_lr=subject.model.train.head_lr)
    n = STEPS * ROWS_A_STEP
    out = subject.scratch / "rehearsal"
    train(
        classifier, few_examples(subject), np.arange(n), config, loss, out, "rehearsal", callbacks=[Watch()]
    )
    unmoved = [n for n, old in before.items() if torch.equal(old, named[n].detach())]
    found = Rehearsal(
        losses[0],
        rates,
        sorted(n for n in wanted if n in named and not named[n].requires_grad),
        unmoved,
        sum(p.numel() for p in named.values() if p.requires_grad),
        sum(p.numel() for p in named.values()),
    )
    subject._rehearsal = found  # type: ignore[attr-defined]
    return found


def _rehearsal_config() -> TrainConfig:
    return TrainConfig(
        epochs=1, rows_per_step=ROWS_A_STEP, micro_rows=ROWS_A_STEP, both_orders=False, warmup=0,
        schedule="constant", log_steps=1, checkpoint_steps=0,
    )  # fmt: skip


@check("training", "decoder")
def everything_trains(subject: Subject) -> Finding:
    """Head and adapters are trainable, and each of them moves within a few steps.

    Source: peft #602, #876; a frozen or detached head trains to nothing without an error.
    """
    seen = rehearse(subject)
    fix = 'modules_to_save=["score"], and no torch.no_grad() or detach() before the head'
    if seen.frozen:
        return failed(f"not trainable: {_short(seen.frozen)}", "it stays random", fix)
    if seen.unmoved:
        return failed(
            f"{len(seen.unmoved)} trainable tensors did not move in {STEPS} steps: {_short(seen.unmoved)}",
            "they get no gradient",
            fix,
        )
    return passed(f"all of {seen.trainable:,} trainable parameters moved in {STEPS} steps")


def _short(names: list[str]) -> str:
    shown = ", ".join(".".join(name.split(".")[-4:]) for name in names[:2])
    return shown + (f" and {len(names) - 2} more" if len(names) > 2 else "")


@check("training", "decoder")
def learning_rates_as_asked(subject: Subject) -> Finding:
    """Every optimizer group has the learning rate that was asked for.

    Source: a group key ``"learning_rate"`` in place of ``"lr"`` is ignored without a word.
    """
    seen = rehearse(subject)
    train_config = subject.model.train
    asked = {train_config.lr, train_config.head_lr or train_config.lr}
    wrong = [r for r in seen.rates if not any(math.isclose(r, a, rel_tol=1e-6) for a in asked)]
    shown = ", ".join(f"{r:g}" for r in seen.rates)
    if wrong or not seen.rates:
        return failed(
            f"groups have {shown or 'no rate'}, asked for {', '.join(f'{a:g}' for a in sorted(asked))}",
            "the optimizer's default rate trains, five times off or more",
            'spell the group\'s key "lr"',
        )
    return passed(f"groups at {shown}")


@check("training", "decoder")
def first_loss_is_uniform(subject: Subject) -> Finding:
    """The loss before the first step is ln K: a fresh head knows nothing, and says so.

    Source: a random head on large hidden states starts at several nats, and the first steps undo it.
    """
    loss = rehearse(subject).first_loss
    if abs(loss - math.log(3)) < 0.02:
        return passed(f"{loss:.4f}, ln 3 is {math.log(3):.4f}")
    return failed(
        f"{loss:.4f}, ln 3 is {math.log(3):.4f}",
        "the first steps go into undoing it; adapters are thrown far off",
        "initialise the head with zeros (distill.model.backbone.load_base)",
    )


@check("training", "decoder")
def micro_batches_equal_a_batch(subject: Subject) -> Finding:
    """A step cut into micro-batches moves the weights as the whole step does, rows weighted alike.

    Source: transformers PR #34191: a mean of micro-batch means weights rows by their batch.
    """
    rows = np.arange(5)
    moved = []
    for number, micro in enumerate((5, 4)):
        classifier = small_classifier(subject)
        config = replace(_rehearsal_config(), optimizer="sgd", lr=0.5, rows_per_step=5, micro_rows=5)
        config = replace(config, max_grad_norm=1e9)
        # one step of five rows, whole or four and one
        if micro == 4:
            config = replace(config, rows_per_step=8, micro_rows=4)
        out = subject.scratch / f"micro-{number}"
        train(classifier, few_examples(subject), rows, config, label_loss, out, "micro-batches")
        moved.append(
            {
                n: p.detach().clone()
                for n, p in classifier.named_parameters()
                if p.requires_grad and "score" in n
            }
        )
    size = max(float(p.abs().max()) for p in moved[0].values())
    gap = max(float((moved[1][n] - p).abs().max()) for n, p in moved[0].items())
    if size > 0 and gap < 1e-3 * size:
        return passed(f"5 rows at once and 4 + 1 differ by {gap / size:.0e} of the step")
    return failed(
        f"5 rows at once and 4 + 1 differ by {gap / max(size, 1e-12):.2f} of the step",
        "rows in small micro-batches weigh more",
        "divide the sum of losses by the step's rows, not by the micro-batch's",
    )


@check("training", "declared", "config")
def effective_adapter_rate(subject: Subject) -> Finding | None:
    """alpha/r x lr, what an adapter really learns at, lies where published recipes lie.

    Source: the best alpha is 4 at lr 2e-4, 64 at 6e-5, 192 at 2e-5, for r 64 (discussion 527596); 1.4e-4 with
    r 64 diverged elsewhere.
    """
    return _adapter_rate(subject, getattr(subject.config, "hidden_size", 0))


@check("training", "declared")
def effective_adapter_rate_of_recipe(subject: Subject) -> Finding | None:
    """The same for a recipe whose backbone is not at hand.

    Source: as for effective_adapter_rate.
    """
    if subject.config is not None or subject.model.backbone.tiny is not None:
        return None
    return _adapter_rate(subject, 4096)


def _adapter_rate(subject: Subject, width: int) -> Finding | None:
    lora, lr = subject.model.lora, subject.model.train.lr
    if not lora.enabled:
        return None
    rate = lora.alpha / lora.r * lr
    shown = f"alpha/r x lr = {lora.alpha:g}/{lora.r} x {lr:g} = {rate:.1e}"
    if width < 1024 or RATES[0] <= rate <= RATES[1]:
        return passed(shown)
    return warned(
        f"{shown}, outside {RATES[0]:g} to {RATES[1]:g}",
        "under-trained below, divergence above",
        "scale lr or alpha; distill.race --tune lr finds it",
    )


@check("training", "declared")
def depth_frozen(subject: Subject) -> Finding | None:
    """How much of the depth is frozen; most layers should be trained.

    Source: layers >= 16 freezes 38 % of Gemma-2-9B's 42 and 50 % of Llama-3.1-8B's 32; r64 on every layer was
    worth .013 (discussion 527596).
    """
    share = subject.model.lora.first_layer
    targets = subject.model.lora.targets
    shown = f"{share:.0%} of the depth frozen, adapters on {', '.join(targets)}"
    if not subject.model.lora.enabled or share <= MANY_FROZEN:
        return passed(shown)
    return warned(shown, "about .013 with r64 (discussion 527596)", "lora.first_layer: 0")


@check("training", "declared")
def declared_precision(subject: Subject) -> Finding | None:
    """What the recipe declares can run: precision, attention and family go together.

    Source: transformers #36822 (Gemma in fp16), 5.17's sdpa for Gemma-2.
    """
    backbone = subject.model.backbone
    family = by_hub_name(backbone.path) if subject.config is None else subject.family
    if backbone.tiny is not None:
        family = architecture(backbone.tiny.family)
    family = family or architecture("")
    attention_for(family.name, backbone.attention)  # raises, with the reason, where the cap would be lost
    compute = backbone.compute if backbone.precision == "nf4" else backbone.precision
    if family.overflows and compute == "fp16" and not backbone.packed:
        return failed(
            "Gemma is declared to compute in fp16",
            "overflow to NaN (transformers #36822)",
            "bf16, or packed: true, which keeps residuals in float32",
        )
    return passed(f"{backbone.precision} computing in {compute}, attention {backbone.attention}")


@check("training", "adapter")
def head_is_saved(subject: Subject) -> Finding | None:
    """The adapter's file holds the trained head.

    Source: peft #602, #876: without ``modules_to_save`` the head is random after every reload.
    """
    assert subject.adapter is not None
    path = subject.adapter / "adapter_model.safetensors"
    if not path.exists():
        return None
    config = subject.adapter / "adapter_config.json"
    if config.exists() and json.loads(config.read_text(encoding="utf-8")).get("task_type") == "CAUSAL_LM":
        return passed("a language model's own head, which stays as it is")
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
    heads = [n for n in names if "score" in n or "classifier" in n]
    if heads:
        return passed(heads[0].removeprefix("base_model.model."))
    return failed(
        f"{len(names)} tensors, none of them the head's",
        "after a reload the head is random: log-loss at or above ln K",
        'modules_to_save=["score"] (automatic for task_type SEQ_CLS); train again',
    )


@check("training", "run")
def logged_learning_rate(subject: Subject) -> Finding | None:
    """The learning rate that the run logged rises to what its configuration asks for.

    Source: as for learning_rates_as_asked, seen from the run's own metrics.
    """
    assert subject.run is not None
    asked = subject.model.train.lr
    logged: list[float] = []
    for path in sorted(subject.run.glob("*/metrics.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            logged.append(json.loads(line).get("learning_rate", 0.0))
    if not logged:
        return None
    if 0.5 * asked <= max(logged) <= 1.001 * asked:
        return passed(f"rises to {max(logged):g}, asked for {asked:g}")
    return failed(
        f"rises to {max(logged):g}, asked for {asked:g}",
        "trained at another rate than declared",
        "look for the optimizer group's key; train again",
    )


@check("training", "decoder", slow=True)
def head_survives_reload(subject: Subject) -> Finding | None:
    """Saved, and loaded by plain peft in a new process, the classifier gives the same logits.

    Source: peft #602, #876.
    """
    if not subject.model.lora.enabled:
        return None
    classifier = small_classifier(subject)
    _randomise(classifier)
    rows = [r.tolist() for r in _rows_of(subject)]
    with torch.no_grad():
        mine = [_logits(classifier, r) for r in rows]
    where = subject.scratch / "reload"
    classifier.save(where)
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, subject.small, str(where), "3"],
        input=json.dumps(rows), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1][:160]
        return failed(f"a new process cannot load it: {reason}", "it cannot be served", "see the message")
    gap = max(
        abs(a - b)
        for m, t in zip(mine, json.loads(done.stdout), strict=True)
        for a, b in zip(m, t, strict=True)
    )
    if gap < 1e-3:
        return passed(f"logits differ by {gap:.0e} in a new process")
    return failed(
        f"logits differ by {gap:.2f} in a new process",
        "the head is random after reload",
        'modules_to_save=["score"]',
    )


@check("training", "decoder", slow=True)
def merging_changes_little(subject: Subject) -> Finding | None:
    """Merging adapters into the base, as precision declares it, leaves the logits alone, or it is said.

    Source: merging LoRA into NF4 rounds the sum to 4 bits again.
    """
    backbone = subject.model.backbone
    if not subject.model.lora.enabled or (backbone.precision == "nf4" and subject.config.hidden_size % 64):
        return None
    loaded = load_base(_copy(subject), subject.small, 3)
    classifier = add_adapters(loaded, lora_of(subject), 0)
    _randomise(classifier, 0.1)
    rows = [r.tolist() for r in _rows_of(subject)]
    with torch.no_grad():
        before = torch.tensor([_logits(classifier, r) for r in rows])
        classifier.model = classifier.model.merge_and_unload()
        after = torch.tensor([_logits(classifier, r) for r in rows])
    gap = float((after - before).abs().max() / before.abs().max())
    shown = f"merged in {backbone.precision}, logits move by {gap:.1e} of their size"
    if gap < 1e-2:
        return passed(shown)
    return warned(
        shown,
        "scores of the unmerged model are not those of the merged",
        "serve what was scored: do not merge, or merge into bf16",
    )


def _rows_of(subject: Subject) -> list[Any]:
    examples = few_examples(subject)
    return [torch.from_numpy(examples.encoded[i].astype("int64")) for i in range(len(LENGTHS))]


def _logits(classifier: Classifier, ids: list[int]) -> list[float]:
    row = torch.tensor([ids], device=classifier.device)
    return classifier(row, torch.ones_like(row), torch.tensor([len(ids) - 1], device=classifier.device))[
        0
    ].tolist()


def _randomise(classifier: Classifier, adapters: float = 1.0) -> None:
    """Give the head, and the adapters on a scale, values of a trained size, so that losing them shows."""
    torch.manual_seed(1)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            scale = adapters if "lora_B" in name else 1.0
            torch.nn.init.normal_(parameter, std=scale * parameter.shape[-1] ** -0.5)
