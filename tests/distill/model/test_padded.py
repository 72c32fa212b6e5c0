"""Encoders, and decoders in padded batches, behind the names of the packed classifier."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import Template
from data.errors import UserError
from distill.config import BackboneConfig, LoraConfig, TinyConfig, TrainConfig
from distill.losses import label_loss as loss
from distill.model.backbone import add_adapters, attention_name, load_base, load_tokenizer, load_trained
from distill.model.tiny import tiny_backbone, train_tokenizer
from distill.packing.cutting import Static
from distill.packing.examples import Examples
from distill.packing.pack import pack
from distill.training.trainer import predict_logits, train

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4, "vocab_size": 320}
CASES = [
    ("bert", True), ("bert", False), ("llama", True), ("llama", False),
    ("deberta", False), ("modernbert", True), ("electra", True), ("roberta", False),
    ("distilbert", True), ("distilbert", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return simulate_arena(ArenaConfig(n_rows=24, seed=5))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, rows):
    """A tiny checkpoint of every family."""
    import transformers as t

    home = tmp_path_factory.mktemp("checkpoints")
    tiny = {f: TinyConfig(family=f, pretrain_steps=2, kv_heads=2, **SHAPE) for f in ("bert", "llama")}
    found = {f: str(tiny_backbone(shape, rows, Template(), 0, home)) for f, shape in tiny.items()}
    texts = [p[0] for p in rows.table.column("prompt").to_pylist()]
    tokenizer = train_tokenizer("bert", texts, 320)
    common = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    deberta = {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm",
        "position_biased_input": False, "pooler_hidden_size": 32,
    }  # fmt: skip
    configs = {
        "deberta": t.DebertaV2Config(**common, **deberta),
        "modernbert": t.ModernBertConfig(
            **common,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
            classifier_pooling="mean",
        ),
        "electra": t.ElectraConfig(**common, embedding_size=32),
        "distilbert": t.DistilBertConfig(**common, hidden_dim=64),
        "roberta": t.RobertaConfig(**common, bos_token_id=2, eos_token_id=3),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        t.AutoModel.from_config(config).save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
        found[name] = str(home / name)
    return found


def opened(rows, path):
    config = BackboneConfig(path=path, precision="fp32", packed=False)
    tokenizer = load_tokenizer(config, path)
    encoded = Encoder(tokenizer, Template(), Truncation(192)).encode(rows)
    return config, Examples(encoded, rows.targets, [1, 0, 2], pad_token_id(tokenizer))


@pytest.mark.parametrize(("family", "lora"), CASES)
def test_what_is_trained_is_saved_and_predicts_alike(rows, checkpoints, tmp_path, family, lora):
    path = checkpoints[family]
    config, examples = opened(rows, path)
    adapters = LoraConfig(enabled=lora, r=4)
    model = add_adapters(load_base(config, path, 3), adapters, 0)
    everything = np.arange(len(rows))
    before = predict_logits(model, examples, everything, 0, "before")
    np.testing.assert_allclose(before, 0, atol=1e-6)  # a fresh head knows nothing
    training = TrainConfig(epochs=2, lr=5e-3, rows_per_step=8, log_steps=1, warmup=0)
    train(model, examples, everything, training, loss, tmp_path / "run", "test")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    logits = predict_logits(model, examples, everything, 0, "after")
    assert np.abs(logits).max() > 0.01
    model.save(tmp_path / "saved")
    again = load_trained(config, path, tmp_path / "saved", lora, 3)
    np.testing.assert_allclose(predict_logits(again, examples, everything, 0, "again"), logits, atol=1e-5)


def test_a_padded_decoder_gives_the_packed_ones_logits(rows, checkpoints):
    path = checkpoints["llama"]
    _, examples = opened(rows, path)
    logits = []
    for packed in (True, False):
        given = BackboneConfig(path=path, precision="fp32", packed=packed)
        model = add_adapters(load_base(given, path, 3), LoraConfig(r=4), 0)
        with torch.no_grad():
            torch.manual_seed(1)
            torch.nn.init.normal_(model.inner.score.modules_to_save["default"].weight)
        logits.append(predict_logits(model, examples, np.arange(len(rows)), 0, "both ways"))
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert np.abs(logits[0]).max() > 0.1


def test_an_encoder_reads_each_row_alone_between_its_marks(rows, checkpoints):
    path = checkpoints["bert"]
    config, examples = opened(rows, path)
    tokenizer = load_tokenizer(config, path)
    for sequence in (examples.encoded[0], examples.encoded[7]):
        assert (sequence[0], sequence[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert (sequence == tokenizer.cls_token_id).sum() == 1
    model = add_adapters(load_base(config, path, 3), LoraConfig(enabled=False), 0).eval()
    torch.nn.init.normal_(model.inner.classifier.weight)
    chosen = np.arange(12)
    with torch.no_grad():
        together = model(pack=pack(examples.encoded, chosen, examples.pad_id))
        filled = model(pack=pack(examples.encoded, chosen, examples.pad_id, Static(3000, 32, 100)))
        alone = [model.inner(torch.tensor(examples.encoded[s])[None].long()).logits[0] for s in chosen]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(filled, together, atol=1e-5, rtol=1e-4)


def test_soft_capping_is_never_dropped():
    with pytest.raises(UserError, match="soft-capping of gemma2"):
        attention_name(
            BackboneConfig(path="x", packed=False, attention="sdpa"), AutoConfig.for_model("gemma2")
        )


RELOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    out = [model(input_ids=torch.tensor([ids])).logits[0].tolist() for ids in json.load(sys.stdin)]
json.dump(out, sys.stdout)
"""


def test_a_full_encoder_is_the_librarys_own_in_a_new_process(rows, checkpoints, tmp_path):
    path = checkpoints["modernbert"]
    config, examples = opened(rows, path)
    model = add_adapters(load_base(config, path, 3), LoraConfig(enabled=False), 0)
    torch.nn.init.normal_(model.inner.classifier.weight)
    model.save(tmp_path)
    wanted = predict_logits(model, examples, np.arange(3), 0, "ours")[:, 0]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path)],
        input=json.dumps([examples.encoded[2 * i].tolist() for i in range(3)]),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=1e-4)
