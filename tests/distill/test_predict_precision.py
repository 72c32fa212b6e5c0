"""What prediction holds and multiplies a base in: the layers are so, and the log-loss stays what it was."""

import re

import numpy as np
import pytest
import torch
from transformers import BertConfig, LlamaConfig

from data.errors import UserError
from data.schema import read_rows
from data.softmax import softmax
from distill import load_run, predict
from distill.config import BackboneConfig
from distill.export import main as export
from distill.kernels.linear import parts
from distill.model import backbone
from distill.model.held import SINCE, check_card
from distill.model.served import check_own_head
from distill.runs import saved
from distill.runs.loaded import predict_rows
from distill.runs.saved import Access, identity, read_saved
from ensemble.solvers.numbers import cross_entropy

AGREES = 0.002
"""Log-loss by which products in 8 bits may differ from those written out, on a tiny model."""


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory):
    """The student as a plain model in float32, and its rows."""
    out = tmp_path_factory.mktemp("plain") / "student"
    export(["--model", str(trained / "student"), "--out", str(out)])
    return out


def kinds(model):
    """How the layers are held, from the name of the product that multiplies them."""
    layers = model.ready()._classifier.inner.get_decoder().layers
    linear = [getattr(m, "base_layer", m) for m in layers.modules()]
    return {parts(m)[0] for m in linear if isinstance(m, torch.nn.Linear) and not hasattr(m, "lora_A")} - {
        "dense"
    }


def losses(run, rows):
    logits = predict_rows(run, rows)
    return logits, cross_entropy(softmax(logits.mean(axis=1)), rows.targets)


@pytest.mark.parametrize(
    ("compute", "kind"), [("", "int8"), ("int8", "int8_int8"), ("fp32", "int8"), ("auto", "int8")]
)
def test_a_merged_model_in_int8_is_multiplied_as_asked(plain, trained, compute, kind):
    rows = read_rows(trained)
    before, exact = losses(read_saved(plain), rows)
    after, found = losses(read_saved(plain, Access(precision="int8", compute=compute)), rows)
    assert kinds(load_run(plain, precision="int8", compute=compute)) == {kind}
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()
    assert abs(found.mean() - exact.mean()) < AGREES


@pytest.mark.parametrize(("compute", "kind"), [("", "nf4"), ("int8", "nf4_int8"), ("fp8", "nf4_fp8")])
def test_folds_on_an_nf4_base_are_multiplied_as_asked(trained, compute, kind):
    rows = read_rows(trained)
    before, exact = losses(read_saved(trained / "llama"), rows)
    after, found = losses(read_saved(trained / "llama", Access(compute=compute)), rows)
    assert kinds(load_run(trained / "llama", compute=compute)) == {kind}
    assert (np.abs(after - before).max() > 0) == bool(compute)
    assert abs(found.mean() - exact.mean()) < (5 * AGREES if compute == "fp8" else AGREES)


def test_the_command_takes_both(plain, trained, tmp_path):
    words = ["--data", str(trained / "rows.parquet"), "--model", str(plain), "--out"]
    written = {}
    for name, more in (
        ("own", []),
        ("int8", ["--precision", "int8", "--compute", "int8"]),
    ):
        predict.main([*words, str(tmp_path / f"{name}.csv"), *more])
        written[name] = np.loadtxt(tmp_path / f"{name}.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3))
    assert 0 < np.abs(written["own"] - written["int8"]).max() < 0.02


def test_one_command_may_hold_a_merged_model_and_multiply_an_nf4_one(plain, trained):
    """As a cascade's do: int8 holds what is in 16 or 32 bits, and both are multiplied so."""
    access = Access(precision="int8", compute="int8")
    served = [read_saved(path, access).served for path in (plain, trained / "gemma2")]
    assert [(s.precision, s.compute) for s in served] == [("int8", "int8"), ("nf4", "int8")]


def test_predictions_in_other_products_are_not_taken_up(plain):
    of = {identity(read_saved(plain, Access(precision="int8", compute=compute))) for compute in ("", "int8")}
    assert len(of) == 2


@pytest.mark.parametrize(
    ("access", "words"),
    [
        (Access(compute="int8"), "--compute int8 is for a base in nf4 or int8.*this one is in fp32"),
        (Access(precision="fp16", compute="int8"), "this one is in fp16: --precision int8 holds"),
        (Access(precision="int8", compute="fp8"), "--compute fp8 is for a base in nf4"),
    ],
)
def test_products_that_a_base_is_not_held_for_are_refused(plain, access, words):
    with pytest.raises(UserError, match=words):
        read_saved(plain, access)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"precision": "nf4", "compute": "fp8"}, "compute fp8 needs a card.*8.9 or higher.*use compute auto"),
        ({"precision": "int8", "compute": "int8"}, "compute int8 needs a card.*7.5 or higher"),
        ({"precision": "fp8"}, "precision fp8 needs a card.*use another precision"),
    ],
)
def test_a_card_without_such_products_is_told_of_before_anything_is_loaded(monkeypatch, config, words):
    asked = BackboneConfig(path="x", **config)
    check_card(asked, "run")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    with pytest.raises(UserError, match=f"run: {words}"):
        check_card(asked, "run")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: SINCE["fp8"])
    check_card(asked, "run")


def test_the_commands_choices_are_those_of_training(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    shown = re.search(r"--compute \{([\w,]+)\}", capsys.readouterr().out)
    assert shown is not None
    choices = BackboneConfig.__dataclass_fields__["compute"].metadata["choices"]
    assert tuple(shown[1].split(",")) == choices


def test_a_card_without_a_runs_products_exports_it_all_the_same(trained, tmp_path, monkeypatch):
    def refused(config, where, *remedies):
        raise UserError(f"{where}: needs a card")

    for module in (saved, backbone):
        monkeypatch.setattr(module, "check_card", refused)
    with pytest.raises(UserError, match="needs a card"):
        read_saved(trained / "llama")
    export(["--model", str(trained / "llama"), "--average", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [({"compute": "fp8"}, "predict with --compute auto"), ({"precision": "fp8"}, "distill.export it, and")],
)
def test_what_to_do_on_such_a_card_is_what_a_run_can_do(monkeypatch, config, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match=f"run: .*A100 has none: {words}"):
        check_card(BackboneConfig(path="x", **config), "run", saved.INSTEAD)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (BertConfig, {}, r"run: runs in padded batches \(bert\), and --precision int8 is for decoders"),
        (LlamaConfig, {"packed": False}, r"run: runs in padded batches \(llama\)"),
        (LlamaConfig, {"head": "tokens"}, "run: reads its language model's own logits"),
    ],
)
def test_8_bits_are_refused_by_the_files_alone(config, changes, words, tmp_path):
    config().save_pretrained(tmp_path)
    place = str(tmp_path)
    with pytest.raises(UserError, match=words):
        check_own_head(BackboneConfig(path=place, precision="bf16", **changes), place, "run", "int8")
    LlamaConfig().save_pretrained(tmp_path)
    check_own_head(BackboneConfig(path=place, precision="bf16"), place, "run", "int8")
