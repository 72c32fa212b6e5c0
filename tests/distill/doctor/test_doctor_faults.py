"""Every check sees its planted fault, and every healthy family passes."""

import json
import shutil

import numpy as np
import pytest
import torch
from encoders import ENCODERS, tiny_encoder
from planted import FAULTS, Healthy, find, recipe_file
from transformers import AutoConfig

from data.arena import ArenaConfig, simulate_arena
from data.encoding.template import Template
from distill.config import TinyConfig
from distill.doctor.examine import all_checks, examine
from distill.doctor.finding import broken_off
from distill.doctor.subject import open_subjects
from distill.model.tiny import tiny_backbone

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "layers": 2, "vocab_size": 400, "pretrain_steps": 0}


@pytest.fixture(scope="module")
def healthy(trained, tmp_path_factory):
    rows = simulate_arena(ArenaConfig(n_rows=24, seed=5))
    cache = tmp_path_factory.mktemp("healthy")
    made = {
        f: tiny_backbone(TinyConfig(family=f, **SHAPE), rows, Template(), 0, cache)
        for f in ("llama", "gemma2")
    }
    return Healthy(**made, run=trained / "llama", data=trained)


@pytest.fixture(scope="module")
def healthy_results(healthy, tmp_path_factory):
    """Every finding on healthy subjects of every kind, by check."""
    scratch = tmp_path_factory.mktemp("scratch")
    recipe = recipe_file(healthy, scratch, "gemma2")
    targets = [healthy.llama, healthy.gemma2, healthy.run, healthy.data, recipe]
    found = []
    for number, target in enumerate(targets):
        deep = target in (healthy.llama, recipe)
        for subject in open_subjects(str(target), scratch / str(number), deep=deep):
            found += examine(subject)
    return found


def test_nothing_healthy_fails(healthy_results):
    bad = [r for r in healthy_results if r.status in {"fail", "error"}]
    assert not bad, bad


@pytest.mark.parametrize("planted", FAULTS, ids=lambda f: f.name.replace(" ", "-"))
def test_the_planted_fault_is_found(planted, healthy, tmp_path):
    found = find(planted, healthy, tmp_path)
    assert [r.status for r in found] == [planted.status], found
    (result,) = found
    assert result.seen
    assert result.fix


def test_every_check_has_a_source_a_healthy_case_and_a_fault(healthy_results):
    seen_healthy = {r.check for r in healthy_results if r.status in {"pass", "warn"}}
    for check in all_checks():
        assert "Source:" in (check.function.__doc__ or ""), check.name
    names = {check.name for check in all_checks()}
    assert names - {f.check for f in FAULTS} == {"fast_tokenizer"}
    # healthy cases of these need a chat template, a quantised checkpoint: tests below
    assert names - seen_healthy == {"chat_template_start", "four_bit_settings"}


@pytest.mark.parametrize("family", ENCODERS)
def test_healthy_encoders_pass_the_checks_that_apply(family, tmp_path):
    path = tiny_encoder(family, tmp_path / family)
    (subject,) = open_subjects(str(path), tmp_path / "scratch")
    results = {r.check: r for r in examine(subject)}
    assert {r.status for r in results.values()} == {"pass"}, results
    assert {"one_start_token", "end_token_policy", "padding_makes_no_difference", "pad_token"} <= set(results)
    assert "packed_rows_are_apart" not in results


def test_the_llama_tokenizer_as_meta_ships_it_is_healthy(real_data, tmp_path):
    """Read by the road that training takes: AutoTokenizer alone makes a tokenizer without BOS of it."""
    (subject,) = open_subjects(str(real_data / "llama3_tokenizer"), tmp_path / "scratch")
    results = {r.check: r.status for r in examine(subject)}
    assert {"one_start_token", "start_token_on_training_path", "pad_token"} <= set(results)
    assert set(results.values()) == {"pass"}


def test_a_kernel_for_packs_is_judged_by_the_formula(healthy, tmp_path, monkeypatch):
    """What the doctor does with CUDA's kernels, with those that a CPU has."""
    from distill.doctor.attention import kernel_in_packs
    from distill.kernels import agreement

    (llama,) = open_subjects(str(healthy.llama), tmp_path / "l")
    (gemma,) = open_subjects(str(healthy.gemma2), tmp_path / "g")
    assert kernel_in_packs(llama, "sdpa").status == "pass"
    assert kernel_in_packs(gemma, "eager").status == "pass"
    assert kernel_in_packs(gemma, "sdpa").status == "fail"  # it refuses the cap
    right = agreement.eager
    for forgotten in ("softcap", "sliding_window"):

        def wrong(*tensors, forgotten=forgotten, **options):
            return right(*tensors, **{**options, forgotten: None})

        monkeypatch.setitem(agreement.IMPLEMENTATIONS, "varlen", wrong)
        finding = kernel_in_packs(gemma, "varlen")
        assert finding.status == "fail", finding
        assert "equals the formula to" in finding.seen


def test_float32_takes_no_kernel_that_wants_16_bits(monkeypatch):
    from distill.config import BackboneConfig
    from distill.model import backbone

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = BackboneConfig(path="x", precision="fp32")
    llama, gemma = AutoConfig.for_model("llama"), AutoConfig.for_model("gemma2")
    assert backbone.attention_name(config, llama) == "sdpa"
    assert backbone.attention_name(config, gemma) == "eager"
    assert not backbone._compiles(config)
    config = BackboneConfig(path="x", precision="bf16")
    assert backbone.attention_name(config, gemma) == "flex"
    assert backbone._compiles(config)


def test_healthy_chat_templates_and_quantised_checkpoints_pass(healthy, tmp_path):
    from planted import copied, quantised

    from distill.doctor.attention import four_bit_settings
    from distill.doctor.tokens import chat_template_start

    target = copied(healthy.gemma2, tmp_path)
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (target / "chat_template.jinja").write_text(template)
    (subject,) = open_subjects(str(target), tmp_path / "s")
    finding = chat_template_start(subject)
    assert finding.status == "warn"  # one BOS, but two if the rendered text is tokenized again
    assert "one BOS in the template" in finding.seen
    (tmp_path / "q").mkdir()
    (subject,) = open_subjects(str(quantised(healthy, tmp_path / "q")), tmp_path / "s")
    assert four_bit_settings(subject).status == "pass"


def test_adapter_rates_are_judged_at_full_width_only(tmp_path):
    from distill.doctor.training import effective_adapter_rate

    for subject in open_subjects("lmsys", tmp_path):
        assert effective_adapter_rate(subject).status == "pass"

    class Wide:
        hidden_size = 4096

    (subject,) = open_subjects("llama31-8b", tmp_path)
    subject.__dict__["config"] = Wide
    assert effective_adapter_rate(subject).status == "pass"
    subject.model.train.lr = 1.0
    assert effective_adapter_rate(subject).status == "warn"


def test_a_slow_tokenizer_is_refused():
    from distill.doctor.subject import Subject
    from distill.doctor.tokens import fast_tokenizer

    class Slow:
        is_fast = False

    subject = Subject("x", None)
    subject.__dict__["tokenizer"] = Slow
    assert fast_tokenizer(subject).status == "fail"


def test_rotary_frequencies_are_those_of_the_library():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from distill.doctor.attention import rotary_frequencies

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    np.testing.assert_allclose(rotary_frequencies(128, rope), theirs.numpy(), rtol=1e-5)


def test_the_command_prints_exits_and_speaks_json(healthy, tmp_path, capsys):
    from planted import with_post_processor

    from distill.doctor.__main__ import main

    assert main([str(healthy.data)]) == 0
    assert "0 failed" in capsys.readouterr().out
    broken = with_post_processor(healthy.llama, tmp_path, "$A")
    (broken / "model.safetensors").unlink()
    (broken / "config.json").unlink()  # a tokenizer alone will do
    assert main([str(broken), "--json"]) == 1
    results = {r["check"]: r for r in json.loads(capsys.readouterr().out)}
    assert results["one_start_token"]["status"] == "fail"
    assert "everything_trains" not in results


def test_a_check_that_breaks_off_is_no_pass(healthy, tmp_path, monkeypatch, capsys):
    """It hides no other finding, is counted apart, says where it broke, and the command exits with 1."""
    from distill.doctor.__main__ import main
    from distill.doctor.finding import REGISTRY, Check

    def breaks_off(subject):
        return {}["a field this version of the library lacks"]

    (subject,) = open_subjects(str(healthy.data), tmp_path / "s")
    others = {r.check: r.status for r in examine(subject)}
    monkeypatch.setitem(REGISTRY, "breaks_off", Check("breaks_off", "data", (), breaks_off))
    found = {r.check: r for r in examine(subject)}
    broken = found.pop("breaks_off")
    assert {name: r.status for name, r in found.items()} == others
    assert broken.status == "error"
    assert "KeyError" in broken.seen
    assert "test_doctor_faults.py:" in broken.fix
    assert main([str(healthy.data)]) == 1
    shown = capsys.readouterr().out
    assert "ERROR: breaks off" in shown
    assert "0 failed, 1 could not be run" in shown
    assert main([str(healthy.data), "--json"]) == 1
    assert {r["status"] for r in json.loads(capsys.readouterr().out)} == {"pass", "error"}


def test_a_check_for_which_a_package_is_missing_names_what_brings_it():
    found = broken_off(ModuleNotFoundError("No module named 'bitsandbytes'", name="bitsandbytes"))
    assert found.status == "error"
    assert "pip install 'distillstack[train]'" in found.seen
    assert "report" not in found.fix


def test_a_damaged_store_is_a_fault_and_does_not_end_the_doctor(healthy, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(healthy.run, run)
    (run / "oof.parquet").write_bytes((run / "oof.parquet").read_bytes()[:500])
    (subject,) = open_subjects(str(run), tmp_path / "scratch", data=healthy.data)
    found = {r.check: r for r in examine(subject)}
    assert found["files_as_trained"].status == "fail"
    assert "oof.parquet" in found["files_as_trained"].seen
    assert any(r.status == "pass" for r in found.values())
