"""How a training shows where it is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from data.console.progress import Lines


class ProgressLines(TrainerCallback):
    """A line a minute where no bar can be drawn: step, loss and time left."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note where this start begins."""
        self.lines = Lines(self.what, state.max_steps, "steps", state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Keep the last loss."""
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.4f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say how far the training is, where it is time."""
        self.lines.tell(state.global_step, self.loss)


class NamedProgress(ProgressCallback):
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
