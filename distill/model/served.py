"""A trained classifier made ready for prediction: its adapter merged, its linear layers held in FP8 or int8.

A merged adapter costs nothing. In float32 the predictions stay what they were to the last digits, in 16 bits
within the rounding of a weight. A quantised base is left alone: rounding the sum again would make another
model. FP8 and int8 are made of what a 16 or 32 bit base and its adapter add up to.
"""

from __future__ import annotations

import torch

from data.errors import UserError
from distill.config import BackboneConfig
from distill.kernels.linear import merge_adapters, quantise_linears
from distill.model.classifier import Classifier
from distill.model.padded import PaddedClassifier
from distill.model.verdict import VerdictClassifier

MERGED = ("bf16", "fp16", "fp32")
"""Precisions of a base whose adapters are merged."""
FP8_FROM = (8, 9)
"""Compute capability from which cards multiply in FP8."""


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
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < FP8_FROM:
        raise UserError(
            "--precision fp8 needs a GPU that multiplies in FP8 (compute capability 8.9 or later: Ada, "
            "Hopper, Blackwell); leave it out here"
        )


def serve(classifier: Classifier, config: BackboneConfig, precision: str = "") -> Classifier:
    """Merge a classifier's adapter where its base allows that, and hold its layers in 8 bits where asked.

    Parameters
    ----------
    classifier : Classifier
        Changed in place; it cannot take another adapter afterwards.
    precision : {"", "fp8", "fp16", "int8"}
        In fp16 the classifier was loaded already.
    """
    if classifier.is_peft and config.precision in MERGED and not classifier.sharded:
        merge_adapters(classifier)
    if precision in {"fp8", "int8"}:
        if isinstance(classifier, PaddedClassifier | VerdictClassifier):
            raise UserError(f"--precision {precision} is for decoders in packs with a head of their own")
        quantise_linears(classifier.inner.get_decoder().layers, precision)
    classifier.graphs.forget()
    classifier.__dict__.pop("trained", None)
    return classifier
