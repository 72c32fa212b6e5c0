"""What a stretch of training takes: memory, energy, and how much there is to train."""

from __future__ import annotations

from typing import Any


class Meter:
    """Peak memory and energy of a stretch of work: the GPU's where there is one, else the process's."""

    def __enter__(self) -> Meter:
        """Start."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._joules = _joules()
        self._after: float | None = None
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._after = _joules()

    def readings(self) -> dict[str, Any]:
        """Peak memory in bytes, and joules where the card reports them."""
        import torch

        if torch.cuda.is_available():
            peak = float(torch.cuda.max_memory_allocated())
        else:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
        known = self._joules is not None and self._after is not None
        return {"peak": peak, "joules": self._after - self._joules if known else None}  # type: ignore[operator]


def _joules() -> float | None:
    """Energy the current card has used since its driver was loaded, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:  # no bindings, no permission, or a card that does not report it
        return None


def parameters(model: Any) -> list[int]:
    """Trainable and all parameters; 4-bit weights count twice, for they are stored two to a byte."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return [trainable, total]
