"""A trained classifier made ready for prediction: its adapter merged, its linear layers held in 8 bits.

A merged adapter costs nothing. In float32 the predictions stay what they were to the last digits, in 16 bits
within the rounding of a weight. A quantised base is left alone: rounding the sum again would make another
model. FP8 and int8 are made of what a 16 or 32 bit base and its adapter add up to: FP8 and int8_int8 multiply
as they are, int8 is written out before each product (:mod:`distill.kernels.products`).
"""

from __future__ import annotations

import torch

from data.errors import UserError
from distill.config import BackboneConfig
from distill.kernels.linear import merge_adapters, quantise_linears
from distill.model.backbone import model_type, packs
from distill.model.classifier import Classifier
from distill.model.held import SINCE

MERGED = ("bf16", "fp16", "fp32")
"""Precisions of a base whose adapters are merged."""


def check_fp8(config: BackboneConfig, where: str) -> None:
    """Refuse prediction in FP8 where the card has none, or the base was trained in other values.

    Parameters
    ----------
    config : BackboneConfig
        That of the run.
    where : str
        The run, for the message.
    """
    if config.precision not in MERGED:
        raise UserError(
            f"{where}: was trained on a base in {config.precision}, and its adapter fits that one only; "
            "--precision fp8 is for bases in bf16, fp16 and fp32"
        )
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < SINCE["fp8"]:
        raise UserError(
            "--precision fp8 needs a GPU that multiplies in FP8 (compute capability 8.9 or later: Ada, "
            "Hopper, Blackwell); leave it out here"
        )


def check_own_head(config: BackboneConfig, backbone: str, where: str, precision: str) -> None:
    """Refuse to hold in 8 bits what is no decoder in packs with a head of its own, by its files alone.

    Parameters
    ----------
    config : BackboneConfig
        That of the run.
    backbone : str
        The checkpoint.
    where : str
        The run, for the message.
    precision : {"fp8", "int8"}
    """
    what = "reads its language model's own logits (backbone.head tokens)"
    if config.head == "score":
        kind = model_type(config, backbone)
        if packs(config, kind):
            return
        what = f"runs in padded batches ({kind})"
    raise UserError(
        f"{where}: {what}, and --precision {precision} is for decoders in packs with a head of their own; "
        "leave it out"
    )


def serve(classifier: Classifier, config: BackboneConfig, kind: str = "") -> Classifier:
    """Merge a classifier's adapter where its base allows that, and hold its layers in 8 bits where asked.

    Parameters
    ----------
    classifier : Classifier
        Changed in place; it cannot take another adapter afterwards.
    config : BackboneConfig
        As it was loaded.
    kind : {"", "fp8", "int8", "int8_int8"}
        Of the layers from here on (:mod:`distill.kernels.products`); empty leaves them as they were loaded.
    """
    if classifier.is_peft and config.precision in MERGED and not classifier.sharded:
        merge_adapters(classifier)
    if kind:
        quantise_linears(classifier.inner.get_decoder().layers, kind)
    classifier.graphs.forget()
    classifier.__dict__.pop("trained", None)
    return classifier
