"""Healthy things that look odd, each with a faulty twin: no check takes the one for the other."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from planted import Healthy as Site
from planted import copied, edited, read_by_heart, recipe_file, tokenizer_of

from data.arena import ArenaConfig, simulate_arena
from data.encoding.template import Template
from distill.architectures import DECODERS
from distill.config import TinyConfig, TrainConfig
from distill.doctor.examine import examine
from distill.doctor.subject import Subject, open_subjects
from distill.model.tiny import tiny_backbone

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Makes a tiny checkpoint of a family."""
    rows = simulate_arena(ArenaConfig(n_rows=12, seed=5))
    cache = tmp_path_factory.mktemp("tiny")
    shape = {"hidden_size": 64, "intermediate_size": 64, "layers": 2, "vocab_size": 400, "pretrain_steps": 0}
    return lambda family: tiny_backbone(TinyConfig(family=family, **shape), rows, Template(), 0, cache)


def found(target, scratch, *only, **options):
    """Findings by check."""
    return {
        r.check: r
        for subject in open_subjects(str(target), scratch / "scratch", **options)
        for r in examine(subject, only)
    }


def bad(results):
    return {name: r.seen for name, r in results.items() if r.status in {"fail", "error"}}


@pytest.mark.parametrize("family", [row.name for row in DECODERS if not row.text and row.name != "qwen3_moe"])
def test_no_family_of_the_table_is_called_faulty(family, tiny, tmp_path):
    subject = Subject(family, tmp_path, checkpoint=str(tiny(family)))
    names = {"one_start_token", "pad_token", "sliding_window", "rope_scaling", "softcap_configured"}
    names |= {"start_token_on_training_path", "special_tokens_in_text", "end_token_policy", "vocabulary_fits"}
    results = {r.check: r for r in examine(subject, sorted(names))}
    assert {"one_start_token", "pad_token"} <= set(results)
    assert not bad(results)


def test_a_family_without_bos_may_have_one_named_in_its_config(tiny, tmp_path):
    """Qwen's config.json names a BOS that its tokenizer has not; Llama without its BOS is another model."""
    qwen = copied(tiny("qwen3"), tmp_path)
    edited(qwen / "config.json", bos_token_id=5)
    assert found(qwen, tmp_path, "one_start_token")["one_start_token"].status == "pass"
    llama = tmp_path / "llama"
    shutil.copytree(tiny("llama"), llama)
    edited(llama / "tokenizer_config.json", bos_token=None)
    finding = found(llama, tmp_path, "one_start_token")["one_start_token"]
    assert finding.status == "fail"
    assert finding.fix == "take the model's own tokenizer"


def test_a_bos_that_opens_turns_opens_no_text(tiny, tmp_path):
    """ChatML in a Llama's clothes, as SmolLM2 has it: no BOS by a plain call, one in every turn."""
    from tokenizers import processors

    path = copied(tiny("llama"), tmp_path)
    tokenizer = tokenizer_of(path)
    for old, new in (("bos", "<|im_start|>"), ("eos", "<|im_end|>")):
        token = getattr(tokenizer, f"{old}_token")
        text = (path / "tokenizer.json").read_text().replace(json.dumps(token), json.dumps(new))
        (path / "tokenizer.json").write_text(text)
        edited(path / "tokenizer_config.json", **{f"{old}_token": new})
    tokenizer = tokenizer_of(path)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(path)
    names = ("one_start_token", "chat_template_start", "start_token_on_training_path")
    results = found(path, tmp_path, *names)
    assert {name: r.status for name, r in results.items()} == dict.fromkeys(names, "pass"), results
    tokenizer.chat_template = "<|im_start|>" + CHATML
    tokenizer.save_pretrained(path)
    assert found(path, tmp_path, "chat_template_start")["chat_template_start"].status == "fail"


def test_one_cause_is_told_once(tiny, tmp_path):
    """A pad token that is EOS, a kernel without the cap, Gemma in fp16, a BOS that is missing everywhere."""
    both = copied(tiny("llama"), tmp_path)
    tokenizer = tokenizer_of(both)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(both)
    edited(both / "config.json", pad_token_id=tokenizer.eos_token_id)
    results = found(both, tmp_path)
    assert not bad(results)  # as some checkpoints are published: this toolkit pads and pools otherwise
    assert results["pad_token"].status == "warn"
    assert "pooled_at_last_token" not in results
    plainly = found(both, tmp_path, "pad_token", "pooled_at_last_token", plain=True)
    assert {name: r.status for name, r in plainly.items()} == {"pad_token": "fail"}
    site = Site(llama=both, gemma2=tiny("gemma2"), run=both, data=both)
    for number, (name, changes) in enumerate(
        [
            ("attention_backend", {"backbone__attention": "sdpa"}),
            ("activations_fit_dtype", {"backbone__precision": "fp16", "backbone__packed": False}),
        ]
    ):
        out = tmp_path / str(number)
        out.mkdir()
        assert list(bad(found(recipe_file(site, out, "gemma2", **changes), out))) == [name]


def test_added_tokens_that_are_not_flagged_special_are_no_fault(tiny, tmp_path):
    from tokenizers import AddedToken

    path = copied(tiny("gemma2"), tmp_path)
    tokenizer = tokenizer_of(path)
    tokenizer.add_tokens([AddedToken(f"<{n}mass>", special=False) for n in range(5)])
    tokenizer.save_pretrained(path)
    results = found(path, tmp_path, "special_tokens_in_text", "vocabulary_fits")
    assert not bad(results)
    assert "5 special tokens beyond them" in results["vocabulary_fits"].seen


def test_gemma_3_cuts_in_most_layers_as_it_is_published(tiny, tmp_path):
    """15 of 18 layers see 512 tokens; a window of 128, or all layers windowed, is no Gemma-3."""
    path = copied(tiny("gemma3_text"), tmp_path)
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 3
    edited(path / "config.json", layer_types=kinds, num_hidden_layers=18, sliding_window=512)
    finding = found(path, tmp_path, "sliding_window")["sliding_window"]
    assert finding.status == "pass"
    assert "in 15 of 18 layers, as published; 3 see all" in finding.seen
    edited(path / "config.json", sliding_window=128)
    finding = found(path, tmp_path, "sliding_window")["sliding_window"]
    assert (finding.status, finding.fix) == ("fail", "restore the window of the published config.json")
    edited(path / "config.json", layer_types=["sliding_attention"] * 18)
    assert "every layer" in found(path, tmp_path, "sliding_window")["sliding_window"].seen


def test_a_model_is_read_best_at_the_rope_base_that_it_learnt_with(tiny, tmp_path):
    read_by_heart(tiny("llama"), tmp_path / "learnt", theta=100_000.0)
    finding = found(tmp_path / "learnt", tmp_path, "rope_base")["rope_base"]
    assert finding.status == "pass"
    assert "next-token loss" in finding.seen


def test_a_large_model_is_read_whole_only_deep_and_a_tied_head_counts_once(tiny, tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny("gemma3_text"))
    assert config.tie_word_embeddings
    model = AutoModelForCausalLM.from_config(config)
    path = copied(tiny("gemma3_text"), tmp_path)
    model.save_pretrained(path)
    size = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr("distill.doctor.language.LARGEST", size)
    assert found(path, tmp_path, "rope_base")["rope_base"].status == "pass"
    monkeypatch.setattr("distill.doctor.language.LARGEST", size - 1)
    assert not found(path, tmp_path, "rope_base")
    assert found(path, tmp_path, "rope_base", deep=True)["rope_base"].status == "pass"


def test_a_llama_of_another_rope_base_needs_no_scaling(tiny, tmp_path):
    path = copied(tiny("llama"), tmp_path)
    edited(path / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert found(path, tmp_path, "rope_scaling")["rope_scaling"].status == "pass"


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "constant_with_warmup", "polynomial"])
@pytest.mark.parametrize("steps", [1, 10, 400])
def test_a_short_run_logs_the_rates_of_its_schedule(schedule, steps, tmp_path):
    """Ten steps logged every ten: the last alone, near zero; the same at five times the rate is a fault."""
    from torch import ones
    from torch.optim import SGD
    from transformers import get_scheduler

    subject = Subject("run", tmp_path, run=tmp_path)
    config = subject.model.train = TrainConfig(lr=2e-4, schedule=schedule, log_steps=10)
    optimizer = SGD([ones(1, requires_grad=True)], lr=config.lr)
    scheduler = get_scheduler(schedule, optimizer, round(config.warmup * steps), steps)
    lines = []
    for step in range(1, steps + 1):
        rate = optimizer.param_groups[0]["lr"]
        if step % config.log_steps == 0 or step == steps:
            lines.append({"step": step, "loss": 1.0, "learning_rate": rate, "epoch": step / steps})
        optimizer.step()
        scheduler.step()
    (tmp_path / "fold-0").mkdir()
    for factor, status in ((1, "pass"), (5, "fail")):
        logged = [line | {"learning_rate": line["learning_rate"] * factor} for line in lines]
        text = "\n".join(map(json.dumps, logged))
        (tmp_path / "fold-0" / "metrics.jsonl").write_text(text + "\n")
        (finding,) = examine(subject, ["logged_learning_rate"])
        if max(line["learning_rate"] for line in lines):
            assert finding.status == status, finding


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "qwen25-coder-0.5b", "minilm"])
def test_real_checkpoints_are_healthy(name, tmp_path):
    home = os.environ.get("DISTILLSTACK_MODELS")
    path = Path(home or "") / name
    if not home or not path.is_dir():
        pytest.skip("set DISTILLSTACK_MODELS to a directory of real checkpoints")
    assert not bad(found(path, tmp_path))


def test_a_remedy_is_one_that_helps_its_family(tiny, tmp_path):
    """Packs keep Gemma-2's residuals in float32, not Gemma's."""
    for family, packs_help in (("gemma", False), ("gemma2", True)):
        out = tmp_path / family
        out.mkdir()
        site = Site(llama=tiny(family), gemma2=tiny(family), run=out, data=out)
        recipe = recipe_file(site, out, backbone__precision="fp16")
        results = found(recipe, out, "declared_precision", "activations_fit_dtype")
        assert (not bad(results)) == packs_help, results
        assert "packed: true" not in "".join(r.fix for r in results.values())


def test_plain_texts_are_tried_in_a_template_that_lays_out_nothing_else(tiny, tmp_path):
    """Not as pairs, which such a template has no place for."""
    (subject,) = open_subjects(str(tiny("llama")), tmp_path)
    own = Template("own", "{{ prompts | join(' ') }} =>")
    subject.__dict__["manifest"] = {"template": asdict(own), "classes": ["x", "y"], "swap": None}
    checks = [
        "special_tokens_in_text",
        "verdict_cue_kept",
        "start_token_on_training_path",
        "truncation_commutes",
    ]
    results = {r.check: r.status for r in examine(subject, checks)}
    assert results == dict.fromkeys(sorted(checks[:3]), "pass")
