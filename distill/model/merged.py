"""A trained classifier for prediction alone: adapters become part of the weights where only rounding changes.

Merged, a product is one launch instead of three, and FP8 prediction rounds the gated unit as it is made. A
base in 16 or 32 bits takes the adapters' sum as it takes any weight. An FP8 base is made anew: merged in the
products' dtype, from the checkpoint, and rounded once; added to rounded weights, adapters would be rounded
twice. NF4 and int8 are trained around their own rounding errors, which merging would draw anew: those bases
are kept, and several folds' adapters are loaded into one classifier in turn (:meth:`Classifier.load`), which
keeps compiled code and recorded passes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.config import BackboneConfig
from distill.kernels.linear import merge_adapters, quantise_linears
from distill.model.backbone import DTYPES, compute_dtype, load_trained
from distill.model.classifier import Classifier

MERGED = ("bf16", "fp16", "fp32", "fp8")
"""Precisions of bases into which adapters are merged."""


def can_merge(config: BackboneConfig) -> bool:
    """Whether adapters may become part of this base's weights; a sharded base stays as it is cut."""
    return config.precision in MERGED and config.packed and not config.shard


def load_merged(config: BackboneConfig, path: str, trained: Path, n_classes: int) -> Classifier:
    """Load what :func:`distill.model.backbone.load_trained` loads, adapters merged.

    An FP8 base needs the memory of a 16-bit one while it is made.

    Parameters
    ----------
    config : BackboneConfig
        One that :func:`can_merge` accepts.
    path : str
        The checkpoint that was trained from.
    trained : Path
        Adapter and head, as :meth:`distill.model.classifier.Classifier.save` wrote them.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    whole = replace(config, precision=names[compute_dtype(config)]) if config.precision == "fp8" else config
    classifier = load_trained(whole, path, trained, True, n_classes)
    merge_adapters(classifier)
    if config.precision == "fp8":
        quantise_linears(classifier.inner.get_decoder().layers, "fp8")
    classifier.graphs.forget()
    return classifier
