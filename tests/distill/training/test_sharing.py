"""Training and prediction are the same with prefixes laid out once, in fewer tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.arena import ArenaConfig, simulate_arena
from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import Template
from distill.config import BackboneConfig, LoraConfig, TinyConfig, TrainConfig
from distill.losses import label_loss
from distill.model.backbone import add_adapters, load_base, load_tokenizer
from distill.model.tiny import tiny_backbone
from distill.packing.examples import Examples
from distill.packing.sharing import prefixes, saved_share
from distill.training.predict import predict_logits
from distill.training.trainer import train
from tests.helpers.shared_rows import encoded as rows_that_begin_alike

CONFIG = TrainConfig(lr=0.5, rows_per_step=6, optimizer="sgd", log_steps=1, warmup=0, schedule="constant")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    rows = simulate_arena(ArenaConfig(n_rows=13, seed=5))
    shape = TinyConfig("gemma2", 64, 64, layers=2, vocab_size=300, pretrain_steps=0)
    path = str(tiny_backbone(shape, rows, Template(), 0, tmp_path_factory.mktemp("cache")))
    return BackboneConfig(path=path, precision="fp32"), rows


@pytest.fixture(scope="module", params=["pairs", "candidates"])
def setting(request, backbone):
    config, rows = backbone
    if request.param == "pairs":
        tokenizer = load_tokenizer(config, config.path)
        template = Template("prompt first", "{{ prompts[0] }}|{{ responses_a[0] }}|{{ responses_b[0] }}")
        encoded = Encoder(tokenizer, template, Truncation(192)).encode(rows)
        return config, Examples(encoded, rows.targets, [1, 0, 2], pad_token_id(tokenizer))
    rng = np.random.default_rng(0)
    made = rows_that_begin_alike([(40, *rng.integers(1, 20, size=n)) for n in rng.integers(1, 6, size=13)])
    made = replace(made, ids=10 + made.ids % 280)
    targets = np.zeros((13, made.sizes.max()))
    targets[np.arange(13), rng.integers(made.sizes)] = 1
    return config, Examples(made, targets, list(range(targets.shape[1])), 0)


class Sizes:
    """Counts the tokens that pass through a classifier."""

    def __init__(self, classifier):
        self.tokens, self.largest, self.shared = 0, 0, 0
        classifier.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, classifier, args, kwargs):
        size = kwargs["pack"].input_ids.shape[1]
        self.tokens, self.largest = self.tokens + size, max(self.largest, size)
        self.shared += kwargs["pack"].parents is not None


def fresh(config, examples):
    return add_adapters(load_base(config, config.path, examples.outputs), LoraConfig(r=4), 0)


def trained(setting, wanted, out, train_config=CONFIG, loss=label_loss, static=False):
    config, examples = setting
    classifier = fresh(config, examples)
    classifier.plan.graphs = static
    sizes = Sizes(classifier)
    examples = replace(examples, shared_prefix=wanted)
    train(classifier, examples, np.arange(13), train_config, loss, out, "test")
    return {n: p.detach().clone() for n, p in classifier.named_parameters() if p.requires_grad}, sizes


@pytest.mark.parametrize("way", ["in one pack", "in small packs", "in packs of one shape", "recomputed"])
def test_a_training_is_the_same_with_prefixes_laid_out_once(setting, way, tmp_path):
    changes = {"in small packs": {"pack_tokens": 10}, "recomputed": {"gradient_checkpointing": "true"}}
    config = replace(CONFIG, **changes.get(way, {}))
    static = way == "in packs of one shape"
    plain, all_tokens = trained(setting, "false", tmp_path / "plain", config)
    shared, tokens = trained(setting, "true", tmp_path / "shared", config, static=static)
    for name, value in plain.items():
        torch.testing.assert_close(shared[name], value, atol=2e-6, rtol=1e-4, msg=name)
    assert max(value.abs().max() for name, value in shared.items() if "score" in name) > 1e-3
    encoded = setting[1].encoded
    saves = saved_share(encoded, np.arange(13), prefixes(encoded, np.arange(13)))
    assert saves > 0.1
    assert all_tokens.shared == 0 < tokens.shared
    if not static:
        assert tokens.tokens == round(all_tokens.tokens * (1 - saves))


def test_predictions_are_the_same_and_go_on_where_they_were_killed(setting, tmp_path):
    config, examples = setting
    classifier = fresh(config, examples)
    torch.manual_seed(0)
    torch.nn.init.normal_(classifier.inner.score.weight)
    rows = np.array([4, 0, 11, 2, 7])
    sizes = Sizes(classifier)
    wanted = predict_logits(classifier, examples, rows, 0, "test")
    assert sizes.shared == 0
    share = replace(examples, shared_prefix="auto")
    for most, tokens in ((0, 16384), (0, 10), (3, 16384)):
        found = predict_logits(classifier, share, rows, most, "test", tokens)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert sizes.shared

    class Killed(Exception):
        pass

    def kill(module, args, kwargs):
        raise Killed

    some = predict_logits(classifier, examples, rows[:2], 0, "test", 10, tmp_path / "shards")
    np.testing.assert_allclose(some, wanted[:2], atol=1e-5)
    hook = classifier.register_forward_pre_hook(kill, with_kwargs=True)
    again = predict_logits(classifier, share, rows[:2], 0, "test", 10, tmp_path / "shards")
    np.testing.assert_array_equal(again, some)
    hook.remove()


def test_one_order_a_row_shares_nothing(setting, tmp_path):
    if setting[1].encoded.sizes is not None:
        pytest.skip("pairs alone have orders")
    for both in (True, False):
        runs = [
            trained(
                setting, wanted, tmp_path / f"{both}-{wanted}", replace(CONFIG, both_orders=both), label_loss
            )
            for wanted in ("false", "true")
        ]
        for name, value in runs[0][0].items():
            torch.testing.assert_close(runs[1][0][name], value, atol=2e-6, rtol=1e-4)
        assert (runs[1][1].shared > 0) == both
