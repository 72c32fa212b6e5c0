"""What a base is held in and multiplied in: a recipe's ``precision`` and ``compute`` on the card at hand."""

from __future__ import annotations

import torch

from data.errors import UserError, listing
from distill.config import QUANTISED, BackboneConfig

SINCE = {"fp8": (8, 9), "int8": (7, 5)}
"""Products in 8 bits by name, and the compute capability from which on there are such."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def compute_dtype(config: BackboneConfig) -> torch.dtype:
    """Return the dtype of matrix products: the base's own, or for a quantised one what hardware does well."""
    wanted = config.compute if config.precision in QUANTISED else config.precision
    if wanted in DTYPES:
        return DTYPES[wanted]
    if wanted not in ("auto", *SINCE):  # with 8-bit products, what is not a frozen product is as by auto
        raise UserError(f"recipe: compute is {wanted!r}; it is auto or one of {listing(DTYPES)}")
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def held_in(config: BackboneConfig) -> str:
    """Return what the base's linear layers are held in: the precision, or int8 for products in int8."""
    return "int8_int8" if config.precision == config.compute == "int8" else config.precision


IN_A_RECIPE = ("use compute auto", "use another precision")
"""What to do where a card lacks the products of a recipe's compute, or those of its precision."""


def check_card(config: BackboneConfig, where: str, remedies: tuple[str, str] = IN_A_RECIPE) -> None:
    """Refuse products in 8 bits on a card that has none; without a card they are written out.

    Parameters
    ----------
    where : str
        The recipe, or the run, for the message.
    remedies : tuple of str, optional
        What to do instead, as :data:`IN_A_RECIPE`.
    """
    asked, products, remedy = f"compute {config.compute}", config.compute, remedies[0]
    if config.precision == "fp8":
        asked, products, remedy = "precision fp8", "fp8", remedies[1]
    since = SINCE.get(products)
    if since and torch.cuda.is_available() and torch.cuda.get_device_capability() < since:
        raise UserError(
            f"{where}: {asked} needs a card with such products, of compute capability {since[0]}.{since[1]} "
            f"or higher; {torch.cuda.get_device_name()} has none: {remedy}"
        )
