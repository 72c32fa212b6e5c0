"""What each backbone really got: "exactly the same parameters" is not the same treatment.

The public notebook's layers >= 16 freezes 38 % of Gemma-2-9B and 50 % of Llama-3.1-8B; one tokenizer makes
more tokens of a row than another; alpha/r x lr is the rate that adapters learn at.
"""

from __future__ import annotations

from typing import Any

from distill.race.race import Contestant

HEADER = [
    "backbone", "trainable", "of all", "depth frozen", "alpha/r x lr", "tokens a row", "truncated",
    "tokens/s", "hours", "peak GiB", "kJ",
]  # fmt: skip


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
        "tokens_a_row": float(encoded.lengths.sum() / (encoded.orders * len(run.rows))),
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
