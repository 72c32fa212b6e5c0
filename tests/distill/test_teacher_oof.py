"""The teachers' stores: the contract's files, and proof from those files alone that nothing leaked."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from distill import teacher_oof

TEACHERS = ("llama", "gemma2")
LOGITS = ["logit_winner_model_a", "logit_winner_model_b", "logit_winner_tie"]

RELOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

base, *adapters = sys.argv[1:]
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
logits = []
for adapter, sequences in zip(adapters, json.load(sys.stdin)):
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, dtype=torch.float32, quantization_config=nf4, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits.append([model(input_ids=torch.tensor([ids])).logits[0].tolist() for ids in sequences])
json.dump(logits, sys.stdout)
"""


def reload_plainly(base, adapters, sequences):
    """Score token ids, one list of sequences an adapter, in a new process with transformers and peft alone.

    Returns an array of logits (sequences, 3) an adapter.
    """
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, base, *map(str, adapters)],
        input=json.dumps([[[int(t) for t in ids] for ids in part] for part in sequences]),
        capture_output=True,
        text=True,
        check=True,
    )
    return [np.array(part) for part in json.loads(done.stdout)]


def encode(store, directory):
    """Encode the rows as the store's manifest says."""
    from transformers import AutoTokenizer

    from data.encoding.encode import Encoder, Truncation
    from data.encoding.template import Template
    from data.schema import read_rows

    manifest = json.loads((store / "manifest.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(manifest["backbone_path"])
    encoder = Encoder(tokenizer, Template(**manifest["template"]), Truncation(**manifest["truncation"]))
    return manifest, encoder.encode(read_rows(directory))


@pytest.mark.parametrize("name", TEACHERS)
def test_a_store_keeps_the_contract(trained, name):
    manifest = json.loads((trained / name / "manifest.json").read_text())
    for field in (
        "rows_hash",
        "folds_hash",
        "classes",
        "label_kind",
        "tokenizer_hash",
        "template",
        "truncation",
    ):
        assert manifest[field]
    assert manifest["label_kind"] == "oof"
    assert len(manifest["backbone"]["weight_hash"]) == 64
    assert manifest["backbone"]["precision"] == "nf4"
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(manifest["versions"])
    table = pq.read_table(trained / name / "oof.parquet")
    assert table.column_names == ["row_id", "fold", "swap", *LOGITS]
    assert table.num_rows == 2 * 96
    for fold in range(2):
        directory = trained / name / f"fold-{fold}"
        assert (directory / "adapter" / "adapter_config.json").exists()
        steps = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)
        assert not list(directory.glob("checkpoint-*"))


@pytest.mark.parametrize("name", TEACHERS)
def test_plain_peft_in_a_new_process_reproduces_the_stored_logits(trained, name):
    """Each fold's adapter, head included, gives the logits stored for its rows, swapped classes put back."""
    manifest, encoded = encode(trained / name, trained)
    table = pq.read_table(trained / name / "oof.parquet").to_pandas()
    position = {row_id: i for i, row_id in enumerate(dict.fromkeys(table.row_id))}
    stored = [table[table.fold == fold].head(6) for fold in range(2)]
    logits = reload_plainly(
        manifest["backbone_path"],
        [trained / name / f"fold-{fold}" / "adapter" for fold in range(2)],
        [[encoded[2 * position[r.row_id] + r.swap] for r in wanted.itertuples()] for wanted in stored],
    )
    for wanted, plain in zip(stored, logits, strict=True):
        swapped = wanted.swap.to_numpy()
        plain[swapped] = plain[swapped][:, [1, 0, 2]]
        np.testing.assert_allclose(plain, wanted[LOGITS].to_numpy(), atol=1e-3)
        assert np.abs(wanted[LOGITS].to_numpy()).max() > 0.01  # far from the untrained head's zeros


@pytest.fixture(scope="module")
def memorised(tmp_path_factory, tiny_recipe):
    """A run on labels drawn by lot, trained until it knows its training rows by heart."""
    directory = tmp_path_factory.mktemp("memorised") / "arena"
    prepare(simulate_arena(ArenaConfig(n_rows=64, seed=3, noise=1.0, repeat=0.5)), directory, n_folds=2)
    longer = [f"teachers.llama.{key}" for key in ("train.epochs=40", "train.lr=3e-3", "lora.r=16")]
    teacher_oof.main(["--recipe", str(tiny_recipe), "--data", str(directory), "--only", "llama", *longer])
    return directory


def test_no_row_is_predicted_by_a_model_that_saw_its_prompt_group(memorised):
    """From the stored files alone, with transformers and peft only.

    Labels are noise, so a model can know a row's label only by having been trained on it. Every fold's
    adapter, reloaded plainly, must know the labels of the other folds and nothing of its own; the logits
    stored for a row must be those of the adapter that knows nothing of it; and no prompt is in two folds.
    """
    rows = pq.read_table(memorised / "rows.parquet").to_pandas()
    folds = (
        pq.read_table(memorised / "folds.parquet")
        .to_pandas()
        .set_index("row_id")
        .fold[rows.row_id]
        .to_numpy()
    )
    prompts = [" ".join(" ".join(turns).lower().split()) for turns in rows.prompt]
    assert len(set(prompts)) < len(prompts)  # prompts do repeat
    assert all(
        len({f for p, f in zip(prompts, folds, strict=True) if p == prompt}) == 1 for prompt in set(prompts)
    )

    manifest, encoded = encode(memorised / "llama", memorised)
    stored = pq.read_table(memorised / "llama" / "oof.parquet").to_pandas()
    stored = stored[~stored.swap].set_index("row_id").loc[rows.row_id]
    np.testing.assert_array_equal(stored.fold, folds)
    labels = rows.label.to_numpy()
    everything = [encoded[2 * i] for i in range(len(rows))]
    adapters = [memorised / "llama" / f"fold-{fold}" / "adapter" for fold in range(2)]
    reloaded = reload_plainly(manifest["backbone_path"], adapters, [everything, everything])
    for fold, logits in enumerate(reloaded):
        shifted = logits - logits.max(axis=1, keepdims=True)
        probs = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        loss = -np.log(probs[np.arange(len(rows)), labels])
        own = folds == fold
        assert loss[~own].mean() < 0.6, "the adapter should know its training rows"
        assert loss[own].mean() > 1.0, "the adapter knows labels it must never have seen"
        np.testing.assert_allclose(stored[LOGITS].to_numpy()[own], logits[own], atol=0.1)
        others = np.abs(stored[LOGITS].to_numpy()[~own] - logits[~own]).max(axis=1)
        assert np.median(others) > 0.5, "rows of other folds must be stored from another adapter"


def test_an_unknown_teacher_is_named(trained, tiny_recipe):
    from data.errors import UserError

    with pytest.raises(UserError, match="qwen"):
        teacher_oof.main(["--recipe", str(tiny_recipe), "--data", str(trained), "--only", "qwen"])
