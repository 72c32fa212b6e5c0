"""``transformers.Trainer`` with packed steps, our loss and checkpoints that hold only what is trained.

One item of the Trainer's loop is a whole optimiser step, which is cut into packs here: so a step keeps its
rows whatever fits into memory at once. Logging, trackers, schedules, optimisers, several processes and
the resume of optimiser and random state are the library's.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from data.console.progress import is_terminal
from data.errors import listing
from data.files import write_text
from distill.config import CHECKPOINTING, TrainConfig
from distill.model.classifier import Classifier
from distill.packing.cutting import Cutter, Static
from distill.packing.examples import Examples
from distill.packing.pack import pack, send
from distill.packing.sharing import layout, prefixes_to_share, shape_of
from distill.packing.steps import Step, plan_steps, targets_of
from distill.processes import gathered, lowest, on_first, process, sum_gradients
from distill.quiet import quiet_transformers
from distill.training.predict import predict_logits
from distill.training.showing import NamedProgress, ProgressLines

__all__ = ["ClassifierTrainer", "Loss", "LossNotFinite", "last_checkpoint", "predict_logits", "train"]

Loss = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""Maps logits (n, K) and a pack's targets to a loss a sequence, shape (n,)."""

log = logging.getLogger(__name__)

MANY = 2**31
"""Stands for a number of layers not measured yet."""


class LossNotFinite(FloatingPointError):
    """A loss that is not finite.

    Parameters
    ----------
    value : float
    step : int
        The optimiser step, from 1.
    where : str
        What else to say of the place.
    """

    def __init__(self, value: float, step: int, where: str = "") -> None:
        super().__init__(f"the loss is {value} at step {step}{where}")
        self.step = step


class _Steps(Dataset):
    """The planned steps, one an item."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        step = self.steps[index]
        return {"rows": step.rows, "swapped": step.swapped}


def _only(items: list[Any]) -> Any:
    (item,) = items
    return item


class ClassifierTrainer(Trainer):
    """A Trainer over planned steps.

    Attributes
    ----------
    budget : int
        Tokens a pack may have; lowered when CUDA runs out of memory.
    least : int
        Tokens that a pack must have room for: those of the longest row, its candidates all together.
    static : Static or None
        The shape of every pack, for a compiled model.
    """

    def __init__(
        self,
        model: Classifier,
        args: TrainingArguments,
        examples: Examples,
        steps: list[Step],
        loss: Loss,
        config: TrainConfig,
    ) -> None:
        # A compute_loss_func tells Trainer that the loss is already divided by the whole step's rows.
        super().__init__(model=model, args=args, train_dataset=_Steps(steps), compute_loss_func=loss)
        self.classifier = model
        self.examples = examples
        self.steps = steps
        self.row_loss = loss
        self.head_lr = config.head_lr or config.lr
        self.most = config.micro_rows * (2 if config.both_orders and examples.encoded.orders == 2 else 1)
        self.longest = int(examples.encoded.lengths.max())
        encoded = examples.encoded
        sets, pairs = encoded.sizes is not None, config.both_orders and encoded.orders == 2
        able = model.shares and (sets or pairs)
        rows = np.unique(np.concatenate([step.rows for step in steps]))
        self.prefixes = prefixes_to_share(encoded, rows, examples.shared_prefix, able)
        largest = Step(rows, np.zeros(len(rows), dtype=bool)).lengths(encoded, self.prefixes).max()
        self.least = int(largest) if sets else self.longest
        self.together = 2 if pairs and self.prefixes is not None else 1
        self.budget = max(config.pack_tokens, self.least)
        self.static: Static | None = None
        self._resize()
        self._unchecked: list[tuple[int, np.ndarray, Tensor, Any]] = []
        self._terms: dict[str, Tensor] = {}
        self._steps_of_terms = 0
        # Every process loads the same base; only what is trained has to be made equal.
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        ignoring: Any = model
        ignoring._ddp_params_and_buffers_to_ignore = [*frozen, *(n for n, _ in model.named_buffers())]

    @property
    def cutter(self) -> Cutter:
        """How steps are cut into packs, at present."""
        return Cutter(self.budget, self.most, process()[1], self.together)

    def _resize(self) -> None:
        if self.classifier.plan.static:
            encoded = self.examples.encoded
            packs = [
                layout(encoded, step.take(chosen).documents(encoded), self.prefixes)
                for step in self.steps
                for share in self.cutter.packs(step.lengths(encoded, self.prefixes))
                for chosen in share
            ]
            self.static = shape_of(packs, self.longest)

    def get_train_dataloader(self) -> DataLoader:
        """Return the planned steps, in order; every process sees them all and takes its packs of each."""
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=1,
            shuffle=False,
            collate_fn=_only,
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run a whole step, again with smaller packs if CUDA runs out of memory in any process."""
        if not model.training:
            model.train()
        step = Step(inputs["rows"], inputs["swapped"])
        plan = self.classifier.plan
        while True:
            failure, total = "another process ran out of CUDA memory", torch.zeros(())
            done, terms = 1, dict[str, Tensor]()
            try:
                total, terms = self._packed_step(step)
            except torch.OutOfMemoryError as error:
                if self.classifier.sharded:
                    raise torch.OutOfMemoryError(f"{error}; lower train.pack_tokens") from error
                done, failure = 0, str(error)
            # Processes agree on the host, so that none waits on its GPU for one that failed.
            done, kept = lowest([done, MANY if plan.kept is None else plan.kept])
            if plan.kept is not None:
                plan.kept = kept
            if done:
                sum_gradients(self.classifier.trained)
                self._keep_terms(terms)
                return total
            self._spare_memory(model, failure)

    def _packed_step(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Run this process's packs of a step; return the losses' sum over all rows of the whole step.

        Beside it the same of each of the loss's terms, this process's part of it.

        Gradients are left as this process's part of their sum. The loss is scaled so that its mean over
        processes, which the Trainer logs, is the step's.
        """
        encoded, accelerator = self.examples.encoded, self.accelerator
        rank, world = process()
        device = accelerator.device
        total = torch.zeros((), device=device)
        terms: dict[str, Tensor] = {}
        shares = self.cutter.packs(step.lengths(encoded, self.prefixes))
        mine = shares[rank]
        # A sharded base is gathered by all together: who has no pack left runs a row that counts for nothing.
        idle = max(map(len, shares)) - len(mine) if self.classifier.sharded else 0
        for number, chosen in enumerate([*mine, *[np.arange(self.together)] * idle]):
            part = step.take(chosen)
            sequences = part.documents(encoded)
            inputs = pack(encoded, sequences, self.examples.pad_id, self.static, self.prefixes).to(device)
            targets = {name: send(t, device) for name, t in targets_of(self.examples, part).items()}
            with self.compute_loss_context_manager():
                # Not through DDP, which would cut compiled layers to overlap the exchange of gradients:
                # adapters' gradients are exchanged in a thousandth of a step, once all packs are done.
                logits = self.examples.of_sets(self.classifier(pack=inputs), part.rows)
                losses = self.row_loss(logits, targets)
                loss = losses.sum() * (0.0 if number >= len(mine) else 1 / len(step))
            accelerator.backward(loss)
            self._remember(part.rows, losses.detach())
            total += loss.detach() * world
            for name, term in getattr(self.row_loss, "terms", {}).items() if number < len(mine) else ():
                terms[name] = terms.get(name, 0) + term.sum() / len(step)
        return total, terms

    def _keep_terms(self, terms: dict[str, Tensor]) -> None:
        """Add up a step's terms for the next log; on the device, which is not to be waited for."""
        self._steps_of_terms += 1
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0) + value

    def _logged_terms(self) -> dict[str, float]:
        """Means of the loss's terms over the steps since the last log; none of a loss that has but one."""
        steps, own = max(1, self._steps_of_terms), {n: float(v) for n, v in self._terms.items()}
        self._terms, self._steps_of_terms = {}, 0
        if not hasattr(self.row_loss, "terms"):  # the same in every process, which all gather or none
            return {}
        parts = gathered(own)
        names = dict.fromkeys(name for part in parts for name in part)
        if len(names) < 2:
            return {}
        return {f"loss_{name}": sum(part.get(name, 0.0) for part in parts) / steps for name in names}

    def _remember(self, rows: np.ndarray, losses: Tensor) -> None:
        """Have losses checked: at once on the CPU, a step later on a GPU, which is not to be waited for."""
        step = self.state.global_step + 1
        if not losses.is_cuda:
            self._unchecked.append((step, rows, losses, None))
            self.check_losses()
            return
        self.check_losses(before=step)
        done = torch.cuda.Event()
        copied = losses.to("cpu", non_blocking=True)
        done.record()
        self._unchecked.append((step, rows, copied, done))

    def check_losses(self, before: float = math.inf) -> None:
        """Raise :class:`LossNotFinite`, naming step and rows, if a loss so far is not finite."""
        while self._unchecked and self._unchecked[0][0] < before:
            step, rows, losses, done = self._unchecked.pop(0)
            if done is not None:
                done.synchronize()
            wrong = ~torch.isfinite(losses)
            if wrong.any():
                ids = self.examples.row_ids
                bad = dict.fromkeys(rows[wrong.numpy()])
                names = listing([str(row) if ids is None else ids[row] for row in bad])
                raise LossNotFinite(float(losses[wrong][0]), step, f", rows {names}")

    def _spare_memory(self, model: Any, failure: str) -> None:
        """After an out-of-memory error: recompute more, or lower the token budget; give up with one row."""
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        plan = self.classifier.plan
        if plan.checkpoint == "auto":
            plan.checkpoint = "all"
            log.warning("CUDA is out of memory; from here on all layers recompute their activations")
        elif self.budget > self.least:
            before, self.budget = self.budget, max(self.least, self.budget // 2)
            self._resize()
            log.warning("CUDA is out of memory; pack_tokens is lowered from %d to %d", before, self.budget)
        else:
            raise torch.OutOfMemoryError(
                f"{failure}; packs are down to the longest row ({self.least} tokens): lower "
                "encode.max_length, or use precision nf4 and gradient_checkpointing true"
            )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Give the head its own learning rate, and see that every group has the one it was asked for."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            if cls is torch.optim.AdamW and torch.cuda.is_available():
                options["fused"] = True  # one launch for all parameters; the arithmetic is the same
            learnt = [(n.split("."), p) for n, p in self.classifier.named_parameters() if p.requires_grad]
            head = [p for path, p in learnt if self.classifier.head_name in path]
            body = [p for path, p in learnt if self.classifier.head_name not in path]
            groups = [
                {"params": body, "lr": self.args.learning_rate, "weight_decay": self.args.weight_decay},
                {"params": head, "lr": self.head_lr, "weight_decay": 0.0},
            ]
            groups = [group for group in groups if group["params"]]
            asked = [group["lr"] for group in groups]
            self.optimizer = cls(groups, **options)
            if [group["lr"] for group in self.optimizer.param_groups] != asked:
                raise AssertionError("an optimizer group did not take its learning rate")
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.accelerator.clip_grad_norm_(self.classifier.trained, self.args.max_grad_norm)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, after a look at the losses behind the numbers."""
        self.check_losses()
        terms = self._logged_terms() if "loss" in logs else {}
        super().log({**logs, **terms}, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_losses()
        super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.classifier.save(Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.classifier.load(Path(resume_from_checkpoint), trainable=True)


class _MetricsFile(TrainerCallback):
    """Appends every log of the Trainer to a JSON-lines file, and stops on a loss that is not finite."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop what a killed run logged after its last checkpoint."""
        if state.is_world_process_zero and self.path.exists():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line).get("step", math.inf) <= state.global_step:
                        kept.append(line + "\n")
                except json.JSONDecodeError:
                    continue
            write_text(self.path, "".join(kept))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Write one line."""
        logs = dict(logs or {})
        if not math.isfinite(logs.get("loss", 0.0)):
            raise LossNotFinite(logs["loss"], state.global_step)
        if not state.is_world_process_zero:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete ``checkpoint-*``; a half-written one lacks its trainer state."""
    found = []
    for path in directory.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        if number:
            found.append((int(number.group(1)), path))
    return max(found)[1] if found else None


def train(
    model: Classifier,
    examples: Examples,
    train_rows: np.ndarray,
    config: TrainConfig,
    loss: Loss,
    out: Path,
    what: str,
    report_to: str = "none",
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train ``model`` on ``train_rows``, resuming from the last checkpoint under ``out`` if there is one.

    Leaves ``metrics.jsonl`` and, during the run, ``checkpoint-*`` in ``out``. A callback may save and stop
    (``control.should_save``, ``control.should_training_stop``); the next call goes on from there.
    """
    out.mkdir(parents=True, exist_ok=True)
    orders = examples.encoded.orders
    planned = plan_steps(
        train_rows,
        examples.encoded.row_lengths,
        epochs=config.epochs,
        rows_per_step=config.rows_per_step,
        orders=orders,
        both_orders=config.both_orders,
        seed=config.seed,
        random_order=config.random_order,
    )
    model.plan.checkpoint = CHECKPOINTING[config.gradient_checkpointing.lower()]
    model.plan.kept = None
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=len(planned),
        per_device_train_batch_size=1,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.schedule,
        warmup_steps=round(config.warmup * len(planned)),
        optim=config.optimizer,
        # Products are in the base's dtype already; float16 gradients alone need a scaler.
        fp16=model.base_dtype == torch.float16,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.checkpoint_steps else "no",
        save_steps=config.checkpoint_steps or 500,
        save_total_limit=1,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=not is_terminal(),
        report_to=report_to,
        run_name=what,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )
    # One process runs one GPU; the library would spread it over all that it sees.
    args._n_gpu = min(1, args.n_gpu)
    trainer = ClassifierTrainer(model, args, examples, planned, loss, config)
    trainer.remove_callback(PrinterCallback)
    if is_terminal():
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(NamedProgress(what))
    else:
        trainer.add_callback(ProgressLines(what))
    for callback in (_MetricsFile(out / "metrics.jsonl"), *callbacks):
        trainer.add_callback(callback)
    checkpoint = on_first(lambda: last_checkpoint(out))
    model.train()
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.check_losses()
    on_first(lambda: None)  # all are done before anything of the training is moved or deleted
    model.eval()
