"""An exported classifier as ONNX: one graph of ids and mask to logits, for runtimes without torch.

The graph is traced by torch's own exporter from the plain model, with rows and tokens left open, so that any
padded batch fits; the pooled position, soft-capping and sliding windows are in it. What a runtime needs to
know beside it (classes, template, truncation, temperature) stands in ``distillstack.json``. Weights that are
too many for one file of the format lie beside it, under the graph's name with ``.data``.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from data.errors import UserError
from data.files import make_directory
from distill.model.files import writing
from distill.quiet import quiet_exporter, quiet_transformers

FOLDER = "onnx"
MODEL, INT8 = "model.onnx", "model_int8.onnx"
INPUTS = ("input_ids", "attention_mask")
EXAMPLE = (2, 12)
"""Rows and tokens of the batch that is traced."""
BLOCK = 32
IN_INT8 = 4
"""ONNX Runtime's name for products in int8, too."""


LARGEST = (1 << 31) - (1 << 20)
"""Bytes of a graph's weights from which on they lie beside it: protobuf ends below 2 GiB."""
ENTRY = 1024
"""Bytes of a tensor that is worth an entry there."""


class Logits(nn.Module):
    """A classifier's logits (n, K) in float32 of ids and mask (n, tokens), padded on the right."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float()


def write_onnx(exported: Path) -> Path:
    """Write ``onnx/model.onnx`` into the directory of an exported model; return its path.

    Parameters
    ----------
    exported : Path
        What ``distill.export`` left, in float32.

    Raises
    ------
    ModuleNotFoundError
        The extra ``onnx`` is not installed.
    UserError
        The exporter cannot trace this architecture.
    """
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(
            exported, attn_implementation="eager", trust_remote_code=False
        ).eval()
    model.config.use_cache = False
    ids = torch.ones(EXAMPLE, dtype=torch.int64)
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens")
    path = exported / FOLDER / MODEL
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                Logits(model).eval(),
                (ids, torch.ones_like(ids)),
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_shapes=({0: rows, 1: tokens}, {0: rows, 1: tokens}),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"models of type {model.config.model_type} cannot be traced to ONNX ({reason}); leave --onnx out"
        ) from error
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where on this machine its line of code stands, and who is at home there
    make_directory(path.parent)
    program.save(path)
    return path


def write_int8(graph: Path) -> Path:
    """Write a graph with its weights in int8 beside it, for ONNX Runtime alone; return its path.

    A block of :data:`BLOCK` weights has its own scale, as has each block of activations that it meets: one
    scale for a tensor cannot hold the outliers of a language model's activations.

    Parameters
    ----------
    graph : Path
        From :func:`write_onnx`.
    """
    import logging

    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)  # it tells of every node
    path = graph.with_name(INT8)
    with quiet_exporter():
        quantiser = MatMulNBitsQuantizer(
            onnx.load(graph), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=IN_INT8
        )
        quantiser.process()
        made = quantiser.model.model
        weights = sum(len(tensor.raw_data) for tensor in made.graph.initializer)
        onnx.save(
            made,
            path,
            save_as_external_data=weights > LARGEST,
            location=f"{path.name}.data",
            size_threshold=ENTRY,
        )
    return path


def write_graphs(exported: Path, int8: bool) -> Path:
    """Write the graph of an export, and of it one in int8 where asked; return the last one's path.

    Raises
    ------
    UserError
        As :func:`write_onnx`; the disk is full.
    """
    with writing(exported):
        graph = write_onnx(exported)
        return write_int8(graph) if int8 else graph


def moved(made: Path, exported: Path) -> None:
    """Put the graphs of an export into another that is the same, weights first."""
    make_directory(exported / FOLDER)
    for file in sorted((made / FOLDER).iterdir(), key=lambda file: file.suffix != ".data"):
        os.replace(file, exported / FOLDER / file.name)
