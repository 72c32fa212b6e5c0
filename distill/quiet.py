"""Keep the libraries' own chatter off a user's terminal where it tells of nothing to do."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# On CPUs with AVX512-BF16 bitsandbytes wishes for a downloadable kernel, and says so at every import.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# PEFT asks every model by the old name of a property; nothing a user could change.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

# Autograd's thread meets a GPU for the first time in a backward pass; torch then does what it warns of.
warnings.filterwarnings(
    "ignore", "Attempting to run cuBLAS, but there was no current CUDA context", UserWarning
)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what torch's and onnxruntime's exporters say of themselves while a graph is written."""
    below = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(below)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence reports of a fresh classification head, shard writing, and deprecations inside libraries.

    The head is meant to be fresh; the rest is between transformers, PEFT and accelerate. Errors show.
    """
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
