"""An export as ONNX gives torch's logits, of padded batches of any shape."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import ROOT
from transformers import AutoModelForSequenceClassification, Gemma2Config

from data import load_prepared
from data.schema import write_rows
from distill import export, load_run

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def assert_alike(exported: Path, graph: Path, n_tokens: int, atol: float = 1e-4) -> None:
    """Batches of one and several rows, shorter and longer than the traced one, padded on the right."""
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    seen = []
    for rows, longest in ((1, 5), (3, 9), (4, 31)):
        ids = rng.integers(5, n_tokens, size=(rows, longest))
        mask = np.ones_like(ids)
        for row, length in enumerate(rng.integers(2, longest + 1, size=rows)):
            ids[row, length:], mask[row, length:] = model.config.pad_token_id, 0
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(found, wanted, atol=atol)
        seen.append(found)
    assert np.abs(np.concatenate(seen)).max() > 0.01


def test_an_exported_llama_student(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "student"
    export.main(["--model", str(trained / "student"), "--out", str(out), "--onnx", "int8"])
    graph = out / "onnx" / "model.onnx"
    small = graph.with_name("model_int8.onnx")
    assert f"ONNX: {small}" in capsys.readouterr().out
    assert small.exists()
    config = AutoModelForSequenceClassification.from_pretrained(out).config
    assert config.model_type == "llama"
    assert_alike(out, graph, config.vocab_size)
    for file in (graph, small):  # which are given away
        assert b"distill/prediction" not in file.read_bytes()
        assert b"site-packages" not in file.read_bytes()
    assert small.stat().st_size < graph.stat().st_size
    assert_alike(out, small, config.vocab_size, atol=0.02)
    rows = load_prepared(trained)[0].take(np.arange(3))
    wanted = load_run(out).predict_proba(rows)  # the directory is still whole
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    (block,) = (
        text for text in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "session.run" in text
    )
    write_rows(tmp_path / "some.parquet", rows)
    lines = block.replace('"served"', repr(str(out))).replace(
        '"test.csv"', repr(str(tmp_path / "some.parquet"))
    )
    exec(lines, said := {"print": lambda probs: np.testing.assert_allclose(probs, wanted, atol=1e-4)})
    assert said["logits"].shape == (3, 2, 3)


def test_gemma_2_with_soft_capping_and_a_window_shorter_than_the_batch(tmp_path: Path) -> None:
    from distill.prediction.onnx import write_onnx

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        num_labels=3,
        pad_token_id=0,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    assert_alike(tmp_path, write_onnx(tmp_path), 96)


def test_weights_that_are_too_many_for_one_file_lie_beside_the_graph(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a vocabulary of 256,000 tokens has them: a graph's own file ends at 2 GiB."""
    from distill.prediction import onnx

    monkeypatch.setattr(onnx, "LARGEST", 10_000)
    out = tmp_path / "student"
    export.main(["--model", str(trained / "student"), "--out", str(out), "--onnx", "int8"])
    small = out / "onnx" / "model_int8.onnx"
    assert small.with_name("model_int8.onnx.data").stat().st_size > 50_000
    assert_alike(out, small, AutoModelForSequenceClassification.from_pretrained(out).config.vocab_size, 0.02)


def test_an_export_appears_with_its_graphs_or_not_at_all(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And graphs are added to one that is there, whole."""
    from data import UserError
    from distill.prediction import onnx

    def stopped(graph: Path) -> Path:
        assert not (tmp_path / "student" / "onnx").exists()
        raise UserError(f"{graph.name}: the disk is full")

    words = ["--model", str(trained / "student"), "--out", str(tmp_path / "student")]
    monkeypatch.setattr(onnx, "write_int8", stopped)
    with pytest.raises(UserError, match="the disk is full"):
        export.main([*words, "--onnx", "int8"])
    assert not list(tmp_path.iterdir())
    export.main(words)
    with pytest.raises(UserError, match="the disk is full"):
        export.main([*words, "--onnx", "int8"])
    assert not (tmp_path / "student" / "onnx").exists()
    export.main([*words, "--onnx"])
    assert [path.name for path in (tmp_path / "student" / "onnx").iterdir()] == ["model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_graph_is_of_float32(trained: Path, tmp_path: Path) -> None:
    from data import UserError

    with pytest.raises(UserError, match="--dtype bfloat16: the graph is written in float32"):
        export.main(
            [
                "--model",
                str(trained / "student"),
                "--out",
                str(tmp_path / "x"),
                "--onnx",
                "--dtype",
                "bfloat16",
            ]
        )
    assert not (tmp_path / "x").exists()
