"""The Trainer subclass: rows weighted alike however a step is cut up, learning rates as asked."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import Template
from distill.config import BackboneConfig, DistillConfig, LoraConfig, TinyConfig, TrainConfig
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base, load_tokenizer
from distill.model.tiny import tiny_backbone
from distill.packing.examples import Examples
from distill.teaching.lessons import StudentLoss
from distill.training.trainer import ClassifierTrainer, train

CONFIG = TrainConfig(
    epochs=1, lr=1e-2, rows_per_step=8, micro_rows=8, log_steps=1, warmup=0, schedule="constant"
)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    rows = simulate_arena(ArenaConfig(n_rows=21, seed=5))
    shape = TinyConfig(hidden_size=64, intermediate_size=64, layers=1, vocab_size=300, pretrain_steps=0)
    path = str(tiny_backbone(shape, rows, Template(), 0, tmp_path_factory.mktemp("cache")))
    backbone = BackboneConfig(path=path, precision="fp32")
    tokenizer = load_tokenizer(backbone, path)
    encoded = Encoder(tokenizer, Template(), Truncation(192)).encode(rows)
    return backbone, Examples(encoded, rows.targets, [1, 0, 2], pad_token_id(tokenizer))


def trained(setting, out, config=CONFIG, rows=21, row_loss=label_loss, callbacks=(), hook=None, **lora):
    backbone, examples = setting
    classifier = add_adapters(load_base(backbone, backbone.path, 3), LoraConfig(r=4, **lora), 0)
    if hook is not None:
        classifier.register_forward_pre_hook(hook, with_kwargs=True)
    train(classifier, examples, np.arange(rows), config, row_loss, out, "test", callbacks=callbacks)
    return {name: p.detach().clone() for name, p in classifier.named_parameters() if p.requires_grad}


def test_a_log_is_cut_to_its_checkpoint_whole_or_not_at_all(tmp_path, monkeypatch):
    from pathlib import Path

    from distill.training.trainer import _MetricsFile

    log = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "loss": 1.0}}\n' for step in (1, 2, 3)]
    log.write_text("".join(lines))
    state = SimpleNamespace(is_world_process_zero=True, global_step=2)
    real = Path.write_text

    def killed(self, text, **options):
        real(self, text[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        _MetricsFile(log).on_train_begin(None, state, None)
    assert log.read_text() == "".join(lines)
    monkeypatch.undo()
    _MetricsFile(log).on_train_begin(None, state, None)
    assert log.read_text() == "".join(lines[:2])


def test_micro_batches_make_the_step_of_one_batch(setting, tmp_path):
    """Five rows at once, or four and then one: a mean of means would weight the last row fourfold."""
    plain = replace(CONFIG, optimizer="sgd", lr=0.5)
    whole = trained(setting, tmp_path / "whole", plain, rows=5)
    pieces = trained(setting, tmp_path / "pieces", replace(plain, micro_rows=4), rows=5)
    moved = 0.0
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, atol=2e-6, rtol=1e-4)
        moved = max(moved, value.abs().max().item() if "score" in name else 0.0)
    assert moved > 1e-3


def test_every_group_has_the_learning_rate_it_was_asked_for(setting, tmp_path, monkeypatch):
    seen = []
    original = ClassifierTrainer.create_optimizer

    def spy(self, model=None):
        optimizer = original(self, model)
        seen.append([(group["lr"], len(group["params"])) for group in optimizer.param_groups])
        return optimizer

    monkeypatch.setattr(ClassifierTrainer, "create_optimizer", spy)
    trained(setting, tmp_path, replace(CONFIG, lr=1e-3, head_lr=5e-2))
    assert seen[0] == [(1e-3, 14), (5e-2, 1)]  # seven adapted layers of two factors, and the head


def test_the_loss_falls_and_is_logged(setting, tmp_path):
    trained(setting, tmp_path, replace(CONFIG, epochs=30, lr=2e-3, head_lr=1e-2), rows=16)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-10:]) < 0.9
    assert losses[0] == pytest.approx(np.log(3), abs=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(setting, tmp_path):
    def broken(logits, batch):
        return label_loss(logits, batch) * torch.tensor(float("nan"))

    with pytest.raises(FloatingPointError, match="loss is nan at step 1, rows"):
        trained(setting, tmp_path, row_loss=broken)


def test_one_bad_row_is_named_with_its_step(setting, tmp_path):
    backbone, examples = setting
    examples = replace(examples, row_ids=[f"row-{i}" for i in range(21)])
    config = replace(CONFIG, rows_per_step=4, micro_rows=1)
    steps = []

    def broken(logits, batch):
        steps.append(1)
        value = label_loss(logits, batch)
        return torch.cat([value[:1] * float("inf"), value[1:]]) if len(steps) == 7 else value

    with pytest.raises(FloatingPointError, match=r"loss is inf at step 2, rows row-\d+$"):
        trained((backbone, examples), tmp_path, config, row_loss=broken)


class Killed(TrainerCallback):
    """Ends a training after a step, as a signal would: with nothing said or saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_killed_at_any_step_it_resumes_to_the_very_same_weights(setting, tmp_path):
    """Bitwise, with dropout, whose random state must continue too, and within an epoch."""
    config = replace(CONFIG, epochs=2, rows_per_step=6, schedule="cosine", checkpoint_steps=3)
    options = {"dropout": 0.2, "alpha": 16.0}
    whole = trained(setting, tmp_path / "whole", config, **options)
    for step in (1, 3, 5, 6):
        out = tmp_path / f"killed-{step}"
        with pytest.raises(KeyboardInterrupt):
            trained(setting, out, config, callbacks=[Killed(step)], **options)
        resumed = trained(setting, out, config, **options)
        for name, value in whole.items():
            assert torch.equal(resumed[name], value), (step, name)


class Scarce:
    """Memory for so many tokens in a pack, where activations are kept for backward or where not."""

    def __init__(self, kept, recomputed):
        self.kept, self.recomputed = kept, recomputed
        self.sizes = []

    def __call__(self, classifier, args, kwargs):
        size = kwargs["pack"].input_ids.shape[1]
        if size > (self.recomputed if classifier.plan.checkpoint == "all" else self.kept):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, said the test")
        self.sizes.append(size)


def test_too_little_memory_recomputes_then_makes_smaller_packs_and_takes_the_same_steps(
    setting, tmp_path, caplog
):
    plain = replace(CONFIG, optimizer="sgd", lr=0.5)
    whole = trained(setting, tmp_path / "whole", plain)
    scarce = Scarce(500, 1100)
    small = trained(setting, tmp_path / "small", plain, hook=scarce)
    for name, value in whole.items():
        torch.testing.assert_close(small[name], value, atol=2e-6, rtol=1e-4)
    assert max(scarce.sizes) <= 1100
    messages = [record.message for record in caplog.records if "out of memory" in record.message]
    assert "all layers recompute" in messages[0]
    assert "pack_tokens is lowered from 16384 to 8192" in messages[1]
    assert "to 1024" in messages[-1]


def test_a_row_for_which_there_is_no_memory_ends_the_run_with_what_to_do(setting, tmp_path):
    with pytest.raises(torch.OutOfMemoryError, match=r"longest row \(\d+ tokens\): lower encode\.max_length"):
        trained(setting, tmp_path, hook=Scarce(10, 10))


def test_checkpoints_hold_only_what_is_trained(setting, tmp_path):
    trained(setting, tmp_path, replace(CONFIG, checkpoint_steps=2))
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    files = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} <= files
    assert not {"model.safetensors", "training_args.bin"} & files


def test_off_a_terminal_a_training_says_where_it_is(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.console.progress.EVERY_S", 0)
    trained(setting, tmp_path, rows=16)
    first, second = [line[6:] for line in capsys.readouterr().err.splitlines() if " steps" in line]
    assert first.startswith("test: 1 of 2 steps")
    assert "loss " in second
    assert second.endswith(" left")


@pytest.mark.parametrize("name", ["kl", "blackpearl", "mse"])
def test_every_term_of_a_loss_is_logged_and_they_add_up_to_it(setting, tmp_path, name):
    """In packs smaller than a step, and with a row that has no teacher."""
    backbone, examples = setting
    rows = len(examples.targets)
    teachers = np.random.default_rng(0).normal(size=(rows, 2, 3))
    teachers[3] = np.nan
    taught = replace(examples, teacher_logits=teachers, teacher_weights=np.full((rows, 2), 0.5))
    loss = StudentLoss(DistillConfig(loss=name))
    trained((backbone, taught), tmp_path, replace(CONFIG, micro_rows=3, log_steps=2), row_loss=loss)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert logged
    for line in logged:
        terms = {key: value for key, value in line.items() if key.startswith("loss_")}
        assert "loss_ce" in terms
        assert len(terms) > 1
        assert sum(terms.values()) == pytest.approx(line["loss"], abs=2e-4)


def test_a_loss_of_one_term_is_logged_once(setting, tmp_path):
    trained(setting, tmp_path, row_loss=StudentLoss(DistillConfig(loss="hard")))
    assert "loss_" not in (tmp_path / "metrics.jsonl").read_text()
