"""What each backbone really got: "exactly the same parameters" is not the same treatment.

The public notebook's layers >= 16 freezes 38 % of Gemma-2-9B and 50 % of Llama-3.1-8B; one tokenizer makes
more tokens of a row than another; alpha/r x lr is the rate that adapters learn at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.race.race import Contestant

HEADER = [
    "backbone", "trainable", "of all", "depth frozen", "alpha/r x lr", "tokens a row", "truncated",
    "tokens/s", "hours", "peak GiB", "kJ",
]  # fmt: skip


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


def treatment(contestant: Contestant) -> dict[str, Any]:
    """Everything in which one contestant's treatment may differ from another's."""
    run = contestant.run
    lora, train = run.model.lora, run.model.train
    encoded = run.examples.encoded
    seconds = sum(look["seconds"] for look in contestant.looks)
    tokens = sum(look["tokens"] for look in contestant.looks)
    joules = [look["joules"] for look in contestant.looks]
    counts = contestant.looks[0].get("parameters", [0, 0]) if contestant.looks else [0, 0]
    return {
        "name": run.name,
        "trainable": counts[0],
        "share": counts[0] / max(1, counts[1]),
        "frozen_depth": lora.first_layer if lora.enabled else 0.0,
        "adapter_rate": lora.alpha / lora.r * train.lr if lora.enabled else train.lr,
        "tokens_a_row": float(encoded.lengths.mean()),
        "truncated": encoded.truncated / max(1, len(encoded.lengths)),
        "tokens_a_second": tokens / max(seconds, 1e-9),
        "hours": seconds / 3600,
        "peak": max((look["peak"] for look in contestant.looks), default=0.0),
        "joules": sum(joules) if joules and None not in joules else None,
    }


def treatment_line(found: dict[str, Any]) -> list[str]:
    """A treatment as cells under :data:`HEADER`."""
    return [
        found["name"],
        f"{found['trainable']:,}",
        f"{found['share']:.2%}",
        f"{found['frozen_depth']:.0%}",
        f"{found['adapter_rate']:.1e}",
        f"{found['tokens_a_row']:.0f}",
        f"{found['truncated']:.1%}",
        f"{found['tokens_a_second']:,.0f}",
        f"{found['hours']:.2f}",
        f"{found['peak'] / 2**30:.1f}",
        "-" if found["joules"] is None else f"{found['joules'] / 1000:.0f}",
    ]


def parameters(model: Any) -> list[int]:
    """Trainable and all parameters; 4-bit weights count twice, for they are stored two to a byte."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return [trainable, total]
