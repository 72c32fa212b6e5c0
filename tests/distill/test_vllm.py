"""The exported student under vLLM gives the probabilities that transformers gives of the same ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from data.softmax import softmax
from distill import export

vllm = pytest.importorskip("vllm", reason="vLLM is not installed")


def test_an_exported_student_is_classified_alike(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    export.main(["--model", str(trained / "student"), "--out", str(out)])
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, model.config.vocab_size, size=n).tolist() for n in (3, 9, 40)]
    with torch.no_grad():
        wanted = [softmax(model(input_ids=torch.tensor([row])).logits.numpy())[0] for row in rows]
    served = vllm.LLM(str(out), runner="pooling", dtype="float32", enforce_eager=True)
    found = served.classify([vllm.TokensPrompt(prompt_token_ids=row) for row in rows])
    np.testing.assert_allclose([one.outputs.probs for one in found], wanted, atol=1e-3)
