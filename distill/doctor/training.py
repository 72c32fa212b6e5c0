"""Checks of what is trained and at what rate, by a rehearsal on the shallow copy and by what was logged."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import get_scheduler

from data.errors import brief
from distill.architectures import HEADS, architecture, by_hub_name
from distill.doctor.finding import Finding, check, failed, passed, warned
from distill.doctor.rehearsal import (
    STEPS,
    brief_config,
    copy_of,
    few_examples,
    few_rows,
    logits_of,
    lora_of,
    randomise,
    rehearse,
    small_classifier,
)
from distill.doctor.small import plain_model
from distill.doctor.subject import Subject
from distill.kernels.choice import declared
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base
from distill.training.trainer import train

RATES = (5e-6, 1e-3)
"""Effective adapter rates alpha/r x lr that published recipes stay within, at billions of parameters."""
MANY_FROZEN = 0.25
WIDTH = 4096
"""Of a backbone that is not at hand."""


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
        config = replace(brief_config(), optimizer="sgd", lr=0.5, rows_per_step=5, micro_rows=5)
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


@check("training", "declared")
def effective_adapter_rate(subject: Subject) -> Finding | None:
    """alpha/r x lr, what an adapter really learns at, lies where published recipes lie.

    Source: the best alpha is 4 at lr 2e-4, 64 at 6e-5, 192 at 2e-5, for r 64 (discussion 527596); 1.4e-4 with
    r 64 diverged elsewhere.
    """
    lora, lr = subject.model.lora, subject.model.train.lr
    if not lora.enabled or (subject.config is None and subject.model.backbone.tiny is not None):
        return None
    width = WIDTH if subject.config is None else getattr(subject.config, "hidden_size", 0)
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


@check("training", "declared", unless=("activations_fit_dtype",))
def declared_precision(subject: Subject) -> Finding | None:
    """What the recipe declares can run: precision, attention and family go together.

    Source: transformers #36822 (Gemma in fp16), 5.17's sdpa for Gemma-2.
    """
    backbone = subject.model.backbone
    family = by_hub_name(backbone.path) if subject.config is None else subject.family
    if backbone.tiny is not None:
        family = architecture(backbone.tiny.family)
    family = family or architecture("")
    declared(family.name, backbone.attention)  # raises, with the reason, where the cap would be lost
    compute = backbone.compute if backbone.precision == "nf4" else backbone.precision
    if family.overflows and compute == "fp16" and not (backbone.packed and family.wide_residuals):
        return failed(
            "Gemma is declared to compute in fp16",
            "overflow to NaN (transformers #36822)",
            "bf16" + (", or packed: true, which keeps residuals in float32" if family.wide_residuals else ""),
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
        f'modules_to_save=["{HEADS[subject.is_encoder]}"] (automatic for task_type SEQ_CLS); train again',
    )


@check("training", "run")
def logged_learning_rate(subject: Subject) -> Finding | None:
    """The learning rate that the run logged rises to what its configuration asks for.

    Source: as for learning_rates_as_asked, seen from the run's own metrics.
    """
    assert subject.run is not None
    asked = subject.model.train.lr
    logged = [
        line
        for path in sorted(subject.run.glob("*/metrics.jsonl"))
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if "learning_rate" in line and line.get("epoch")
    ]
    if not logged:
        return None
    highest, expected = max(line["learning_rate"] for line in logged), scheduled_rate(subject, logged)
    shown = f"rises to {highest:g}, asked for {asked:g}"
    if expected < 0.5 * asked:
        shown += f", of which its schedule has {expected:g} at the {len(logged)} steps logged"
    if 0.5 * expected <= highest <= 1.001 * min(2 * expected, asked):
        return passed(shown)
    return failed(
        shown, "trained at another rate than declared", "look for the optimizer group's key; train again"
    )


def scheduled_rate(subject: Subject, logged: list[dict[str, float]]) -> float:
    """Return the highest rate of the schedule at the steps logged: ten steps may have logged their last."""
    config = subject.model.train
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)

    def rate(step: int, steps: int) -> float:
        warmup = round(config.warmup * steps)
        return config.lr * get_scheduler(config.schedule, optimizer, warmup, steps).lr_lambdas[0](step)

    # A step is logged with the rate it was taken at, and "epoch" is the share of all steps done.
    return max(rate(int(line["step"]) - 1, round(line["step"] / line["epoch"])) for line in logged)


@check("training", "decoder", slow=True)
def head_survives_reload(subject: Subject) -> Finding | None:
    """Saved, and loaded by plain peft around a base of another head, the classifier gives the same logits.

    Source: peft #602, #876.
    """
    if not subject.model.lora.enabled:
        return None
    classifier = small_classifier(subject)
    randomise(classifier)
    where = subject.scratch / "reload"
    classifier.save(where)
    try:
        again = PeftModel.from_pretrained(plain_model(subject), where).eval()
    except Exception as error:  # peft raises what its reader of the file liked
        reason = brief(f"{type(error).__name__}: {error}", 160)
        return failed(f"plain peft cannot load it: {reason}", "it cannot be served", "see the message")
    with torch.no_grad():
        theirs = [again(input_ids=row[None], use_cache=False).logits[0] for row in few_rows(subject)]
    gap = float((logits_of(classifier, subject) - torch.stack(theirs)).abs().max())
    if gap < 1e-3:
        return passed(f"logits differ by {gap:.0e} as plain peft loads it")
    return failed(
        f"logits differ by {gap:.2f} as plain peft loads it",
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
    loaded = load_base(copy_of(subject), subject.small, 3)
    classifier = add_adapters(loaded, lora_of(subject), 0)
    randomise(classifier, 0.1)
    before = logits_of(classifier, subject)
    classifier.model = classifier.model.merge_and_unload()
    after = logits_of(classifier, subject)
    gap = float((after - before).abs().max() / before.abs().max())
    shown = f"merged in {backbone.precision}, logits move by {gap:.1e} of their size"
    if gap < 1e-2:
        return passed(shown)
    return warned(
        shown,
        "scores of the unmerged model are not those of the merged",
        "serve what was scored: do not merge, or merge into bf16",
    )
