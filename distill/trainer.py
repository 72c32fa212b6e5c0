"""``transformers.Trainer`` with our batches, our loss and checkpoints that hold only what is trained.

Logging, trackers, schedules, optimisers, mixed precision and the resume of optimiser and random state
are the library's.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from data.progress import is_terminal, progress
from distill.batches import Examples, MicroBatch, by_length, collate, pad, plan
from distill.config import TrainConfig
from distill.head import Classifier
from distill.quiet import quiet_transformers

Loss = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""Maps logits (n, K) and a collated batch to a loss a sequence, shape (n,)."""


class _Plan(Dataset):
    """The planned micro-batches, one an item."""

    def __init__(self, batches: list[MicroBatch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> MicroBatch:
        return self.batches[index]


def _collate_one(examples: Examples, items: list[MicroBatch]) -> dict[str, Tensor]:
    (batch,) = items
    return collate(examples, batch)


class ClassifierTrainer(Trainer):
    """A Trainer over planned micro-batches."""

    def __init__(
        self,
        model: Classifier,
        args: TrainingArguments,
        examples: Examples,
        batches: list[MicroBatch],
        loss: Loss,
        head_lr: float,
    ) -> None:
        # A compute_loss_func tells Trainer that the loss is already divided by the whole step's rows.
        super().__init__(model=model, args=args, train_dataset=_Plan(batches), compute_loss_func=loss)
        self.classifier = model
        self.examples = examples
        self.row_loss = loss
        self.head_lr = head_lr

    def get_train_dataloader(self) -> DataLoader:
        """Return the planned micro-batches, in order."""
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=1,
            shuffle=False,
            collate_fn=partial(_collate_one, self.examples),
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum the sequences' losses over the rows of the whole optimiser step, not of the micro-batch."""
        logits = model(inputs["input_ids"], inputs["attention_mask"], inputs["last"])
        loss = self.row_loss(logits, inputs).sum() / inputs["step_rows"]
        return (loss, logits) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Give the head its own learning rate, and see that every group has the one it was asked for."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            head = [p for n, p in self.classifier.named_parameters() if p.requires_grad and "score" in n]
            body = [p for n, p in self.classifier.named_parameters() if p.requires_grad and "score" not in n]
            groups = [
                {"params": body, "lr": self.args.learning_rate, "weight_decay": self.args.weight_decay},
                {"params": head, "lr": self.head_lr, "weight_decay": 0.0},
            ]
            self.optimizer = cls(groups, **options)
            asked = [self.args.learning_rate, self.head_lr]
            if [group["lr"] for group in self.optimizer.param_groups] != asked:
                raise AssertionError("an optimizer group did not take its learning rate")
        return self.optimizer

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
        if self.path.exists():
            kept = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line).get("step", math.inf) <= state.global_step:
                        kept.append(line + "\n")
                except json.JSONDecodeError:
                    continue
            self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Write one line."""
        logs = dict(logs or {})
        if not math.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(f"the loss is {logs['loss']} at step {state.global_step}")
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
    batches = plan(
        train_rows,
        examples.encoded.lengths[::orders],
        epochs=config.epochs,
        rows_per_step=config.rows_per_step,
        micro_rows=config.micro_rows,
        orders=orders,
        both_orders=config.both_orders,
        seed=config.seed,
    )
    accumulation = config.rows_per_step // config.micro_rows
    dtype = _autocast_dtype(model)
    steps = math.ceil(len(batches) / accumulation)
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=config.micro_rows,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=config.schedule,
        warmup_steps=round(config.warmup * steps),
        optim=config.optimizer,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
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
    )
    trainer = ClassifierTrainer(model, args, examples, batches, loss, config.head_lr or config.lr)
    trainer.remove_callback(PrinterCallback)
    if is_terminal():
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_NamedProgress(what))
    trainer.add_callback(_MetricsFile(out / "metrics.jsonl"))
    for callback in callbacks:
        trainer.add_callback(callback)
    checkpoint = last_checkpoint(out)
    model.train()
    with quiet_transformers():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model.eval()


class _NamedProgress(ProgressCallback):
    """The library's progress bar, named after what is trained."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.what)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Show the loss on the bar instead of printing a line a log."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")


def _autocast_dtype(model: Classifier) -> torch.dtype:
    """The dtype the base computes in, under which fp32 adapters need autocast."""
    quantization = getattr(model.inner.config, "quantization_config", None)
    if quantization is not None:
        return quantization.bnb_4bit_compute_dtype
    return model.inner.dtype


@torch.no_grad()
def predict_logits(
    model: Classifier, examples: Examples, rows: np.ndarray, batch_size: int, what: str
) -> np.ndarray:
    """Predict rows in all their orders.

    Returns
    -------
    ndarray of shape (len(rows), orders, K), float32
        Classes permuted back into each row's own order.
    """
    model.eval()
    orders = examples.encoded.orders
    k = len(examples.permutation)
    sequences = (rows[:, None] * orders + np.arange(orders)).ravel()
    position = {int(s): i for i, s in enumerate(sequences)}
    logits = np.empty((len(sequences), k), dtype=np.float32)
    batches = list(by_length(examples.encoded, sequences, batch_size))
    dtype = _autocast_dtype(model)
    for chosen in progress(batches, what, unit="batch"):
        tensors = pad(examples.encoded, chosen, examples.pad_id)
        tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
            out = model(**tensors)
        logits[[position[int(s)] for s in chosen]] = out.float().cpu().numpy()
    shaped = logits.reshape(len(rows), orders, k)
    if orders == 2:
        shaped[:, 1] = shaped[:, 1][:, examples.permutation]
    return shaped
