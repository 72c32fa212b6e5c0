"""Faults planted on purpose into healthy checkpoints, recipes, runs and data: what the doctor must find.

Each function takes what is healthy and an empty directory, and yields what to examine: a target and
options of ``distill.doctor.subject.open_subjects``. Shared with ``benchmarks/doctor.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "what",
    "is",
    "two",
    "plus",
    "four",
    "name",
    "colour",
    "say",
    "hello",
    "red",
    "blue",
]


@dataclass(frozen=True)
class Healthy:
    """Healthy things to plant faults into."""

    llama: Path
    gemma2: Path
    run: Path
    data: Path


@dataclass(frozen=True)
class Fault:
    """A planted fault and the check that must find it."""

    name: str
    check: str
    plant: Callable[[Healthy, Path], object]
    deep: bool = False
    status: str = "fail"


def read_by_heart(tiny: Path, out: Path, theta: float) -> None:
    """A language model of a tiny one's shape that has learnt the doctor's text at some rotary base."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from distill.doctor.language import TOKENS, prose

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    config = AutoConfig.from_pretrained(tiny)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ids = torch.tensor([tokenizer(prose())["input_ids"][:TOKENS]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


FAULTS: list[Fault] = []


def fault(check: str, deep: bool = False, status: str = "fail"):
    def register(function):
        name = function.__name__.replace("_", " ")
        FAULTS.append(Fault(name, check, contextmanager(function), deep, status))
        return function

    return register


def find(planted: Fault, healthy: Healthy, out: Path):
    """Plant the fault, examine, and return the finding of the check that is meant to see it."""
    from distill.doctor.examine import examine
    from distill.doctor.subject import open_subjects

    out.mkdir(parents=True, exist_ok=True)
    with planted.plant(healthy, out) as (target, options):
        subjects = open_subjects(str(target), out / "scratch", **{"deep": planted.deep, **options})
        return [r for s in subjects for r in examine(s, only=[planted.check])]


def copied(source: Path, out: Path) -> Path:
    target = out / "copy"
    shutil.copytree(source, target)
    return target


def edited(path: Path, **changes) -> None:
    value = json.loads(path.read_text())
    for key, new in changes.items():
        value[key] = new
    path.write_text(json.dumps(value))


def tokenizer_of(path: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def with_post_processor(source: Path, out: Path, single: str) -> Path:
    from tokenizers import processors

    target = copied(source, out)
    tokenizer = tokenizer_of(target)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single.replace("BOS", bos), special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(target)
    return target


def recipe_file(healthy: Healthy, out: Path, family: str = "llama", **changes) -> Path:
    """A recipe around a healthy checkpoint, with dotted changes spelled with double underscores."""
    from dataclasses import asdict

    import yaml

    from distill.config import ModelConfig

    model = asdict(ModelConfig())
    model["backbone"] |= {"path": str(getattr(healthy, family)), "precision": "fp32"}
    for key, value in changes.items():
        part, name = key.split("__")
        model[part][name] = value
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump({"teachers": {"it": model}}))
    return path


def ids_file(out: Path, name: str, rows) -> Path:
    path = out / name
    path.write_text("\n".join(json.dumps([int(t) for t in row]) for row in rows) + "\n")
    return path


def healthy_ids(healthy: Healthy):
    from distill.doctor.subject import Subject
    from distill.doctor.tokens import training_ids

    return training_ids(Subject("x", Path("."), checkpoint=str(healthy.llama)))


# --- tokens


@fault("one_start_token")
def missing_bos(healthy, out):
    yield with_post_processor(healthy.llama, out, "$A"), {}


@fault("one_start_token")
def double_bos(healthy, out):
    yield with_post_processor(healthy.gemma2, out, "BOS BOS $A"), {}


@fault("start_token_on_training_path")
def bos_in_mid_text_from_joined_pieces(healthy, out):
    tokenizer = tokenizer_of(healthy.llama)
    rows = [tokenizer(a)["input_ids"] + tokenizer(b)["input_ids"] for a, b in pairwise(WORDS)]
    yield healthy.llama, {"ids": ids_file(out, "ids.jsonl", rows)}


@fault("start_token_on_training_path")
def rendered_chat_template_tokenized_again(healthy, out):
    tokenizer = tokenizer_of(healthy.llama)
    rows = [tokenizer(tokenizer.bos_token + word)["input_ids"] for word in WORDS]
    yield healthy.llama, {"ids": ids_file(out, "ids.jsonl", rows)}


@fault("chat_template_start")
def chat_template_with_two_bos(healthy, out):
    target = copied(healthy.gemma2, out)
    (target / "chat_template.jinja").write_text(
        "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    yield target, {}


@fault("end_token_policy")
def add_eos_token_is_ignored(healthy, out):
    target = copied(healthy.llama, out)
    edited(target / "tokenizer_config.json", add_eos_token=True)
    yield target, {}


@fault("pad_token")
def eos_as_pad(healthy, out):
    target = copied(healthy.llama, out)
    tokenizer = tokenizer_of(target)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(target)
    yield target, {}


@fault("pad_token", status="warn")
def no_pad_token(healthy, out):
    target = copied(healthy.llama, out)
    edited(target / "tokenizer_config.json", pad_token=None)
    yield target, {}


@fault("special_tokens_in_text")
def marker_not_flagged_special(healthy, out):
    """To an encoder that goes by the flag alone."""
    from tokenizers import AddedToken

    target = copied(healthy.gemma2, out)
    tokenizer = tokenizer_of(target)
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=False)])
    tokenizer.save_pretrained(target)
    flagged = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    with mock.patch("data.encoding.encode.special_ids", return_value=flagged):
        yield target, {}


@fault("verdict_cue_kept")
def right_truncation_cuts_the_verdict(healthy, out):
    rows = [row[:60] for row in healthy_ids(healthy)]
    yield healthy.llama, {"ids": ids_file(out, "ids.jsonl", rows)}


@fault("truncation_commutes")
def truncation_favours_response_a(healthy, out):
    def greedy(prompt, first, second, room, share):
        prompt = min(prompt, room)
        first = min(first, room - prompt)
        return prompt, first, max(0, min(second, room - prompt - first))

    with mock.patch("data.encoding.truncate.budgets", greedy):
        yield healthy.llama, {}


@fault("truncated_share", status="warn")
def most_rows_truncated(healthy, out):
    yield recipe_file(healthy, out, encode__max_length=48), {"data": healthy.data}


@fault("training_and_prediction_alike")
def prediction_tokenizes_otherwise(healthy, out):
    rows = healthy_ids(healthy)
    other = [row[1:] for row in rows]
    yield (
        healthy.llama,
        {"ids": ids_file(out, "a.jsonl", rows), "predict_ids": ids_file(out, "b.jsonl", other)},
    )


@fault("training_and_prediction_alike")
def run_with_another_length(healthy, out):
    target = copied(healthy.run, out)
    path = target / "config.yaml"
    path.write_text(path.read_text().replace("max_length: 192", "max_length: 160"))
    yield target, {}


@fault("vocabulary_fits")
def pad_token_added_without_resizing(healthy, out):
    target = copied(healthy.llama, out)
    tokenizer = tokenizer_of(target)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(target)
    yield target, {}


# --- pooling


@fault("padding_makes_no_difference")
def attention_mask_forgotten(healthy, out):
    import torch

    from distill.doctor import pooling as checks_pooling

    real = checks_pooling.padded

    def unmasked(rows, pad, side="right"):
        batch = real(rows, pad, side)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    with mock.patch.object(checks_pooling, "padded", unmasked):
        yield healthy.llama, {}


@fault("pooled_at_last_token")
def eos_as_pad_pools_elsewhere(healthy, out):
    target = copied(healthy.llama, out)
    config = json.loads((target / "config.json").read_text())
    edited(target / "config.json", pad_token_id=config["eos_token_id"])
    yield target, {}


@fault("packed_rows_are_apart")
def packed_under_the_librarys_cache_default(healthy, out):
    yield healthy.gemma2, {"plain": True}


# --- attention and numerics


@fault("declared_precision")
def sdpa_asked_for_gemma2(healthy, out):
    yield recipe_file(healthy, out, "gemma2", backbone__attention="sdpa"), {}


@fault("attention_backend")
def backend_without_softcapping(healthy, out):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def uncapped(module, query, key, value, attention_mask, **options):
        options.pop("softcap", None)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("uncapped", uncapped)
    AttentionMaskInterface.register("uncapped", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    with mock.patch("distill.doctor.attention.attention_in_use", return_value="uncapped"):
        yield recipe_file(healthy, out, "gemma2"), {}


@fault("softcap_configured")
def softcapping_lost_from_the_config(healthy, out):
    target = copied(healthy.gemma2, out)
    edited(target / "config.json", attn_logit_softcapping=None)
    yield target, {}


@fault("sliding_window")
def window_shorter_than_the_rows(healthy, out):
    target = copied(healthy.gemma2, out)
    edited(target / "config.json", sliding_window=128)
    yield target, {}


@fault("rope_scaling")
def rope_scaling_dropped(healthy, out):
    target = copied(healthy.llama, out)
    edited(target / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    yield target, {}


@fault("rope_base")
def rope_base_lost(healthy, out):
    read_by_heart(healthy.llama, out / "llama", theta=100_000.0)
    edited(out / "llama" / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    yield out / "llama", {}


@fault("activations_fit_dtype")
def gemma_in_fp16(healthy, out):
    yield recipe_file(healthy, out, "gemma2", backbone__precision="fp16", backbone__packed=False), {}


@fault("activations_fit_dtype")
def activations_overflow_fp16(healthy, out):
    from safetensors.torch import load_file, save_file

    target = copied(healthy.llama, out)
    weights = load_file(target / "model.safetensors")
    for name in weights:
        if name.endswith("up_proj.weight"):
            weights[name] *= 1e7
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    site = replace(healthy, llama=target)
    yield recipe_file(site, out, backbone__precision="fp16"), {}


def quantised(healthy: Healthy, out: Path, **changes) -> Path:
    target = copied(healthy.llama, out)
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    edited(target / "config.json", quantization_config=settings | changes)
    return target


@fault("four_bit_settings")
def fp4_by_default(healthy, out):
    yield quantised(healthy, out, bnb_4bit_quant_type="fp4"), {}


@fault("four_bit_settings")
def float32_compute_by_default(healthy, out):
    yield quantised(healthy, out, bnb_4bit_compute_dtype="float32"), {}


@fault("four_bit_settings")
def skip_list_that_forgets_the_head(healthy, out):
    yield quantised(healthy, out, llm_int8_skip_modules=["lm_head"]), {}


@fault("head_stays_float32")
def head_quantised(healthy, out):
    def careless(config, path, n_classes):
        import torch
        from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

        options = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["lm_head"],
        )
        return AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=n_classes, quantization_config=options, dtype=torch.float32
        )

    with mock.patch("distill.model.backbone.load_base", careless):
        yield healthy.llama, {}


# --- training


@contextmanager
def other_adapters(change) -> Iterator[None]:
    from distill.doctor import rehearsal

    real = rehearsal.add_adapters

    def faulty(*args, **kwargs):
        classifier = real(*args, **kwargs)
        change(classifier)
        return classifier

    with mock.patch.object(rehearsal, "add_adapters", faulty):
        yield


@fault("everything_trains")
def head_frozen(healthy, out):
    with other_adapters(lambda c: c.inner.score.requires_grad_(False)):
        yield healthy.llama, {}


@fault("everything_trains")
def backbone_detached_from_the_head(healthy, out):
    def detach(classifier):
        classifier.inner.score.register_forward_pre_hook(lambda _m, args: (args[0].detach(),))

    with other_adapters(detach):
        yield healthy.llama, {}


@fault("learning_rates_as_asked")
def optimizer_group_key_misspelt(healthy, out):
    import torch

    from distill.training.trainer import ClassifierTrainer

    def create(self, model=None):
        wanted = [p for p in self.classifier.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([{"params": wanted, "learning_rate": self.args.learning_rate}])
        return self.optimizer

    with mock.patch.object(ClassifierTrainer, "create_optimizer", create):
        yield healthy.llama, {}


@fault("first_loss_is_uniform")
def head_starts_large(healthy, out):
    import torch

    with other_adapters(
        lambda c: torch.nn.init.normal_(c.inner.score.modules_to_save["default"].weight, std=2)
    ):
        yield healthy.gemma2, {}


@fault("micro_batches_equal_a_batch")
def micro_batch_means_averaged(healthy, out):
    from distill.doctor import training as checks_training

    real = checks_training.label_loss

    def by_micro_batch(logits, batch):
        return real(logits, batch) * (4 / len(logits))

    with mock.patch.object(checks_training, "label_loss", by_micro_batch):
        yield healthy.llama, {}


@fault("effective_adapter_rate", status="warn")
def adapter_rate_far_off(healthy, out):
    site = replace(healthy, llama=Path("nobody/has-this"))
    yield recipe_file(site, out, lora__alpha=512.0, lora__r=16), {}


@fault("depth_frozen", status="warn")
def half_of_the_depth_frozen(healthy, out):
    yield "public-notebook", {}


@fault("head_is_saved")
def head_missing_from_the_adapter(healthy, out):
    target = copied(healthy.run / "fold-0" / "adapter", out)
    drop_head(target)
    yield target, {}


def drop_head(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    kept = {n: t for n, t in load_file(path).items() if "score" not in n}
    save_file(kept, path, metadata={"format": "pt"})


@fault("head_survives_reload", deep=True)
def head_random_after_reload(healthy, out):
    from distill.model.classifier import Classifier

    real = Classifier.save

    def forgetful(self, directory):
        real(self, directory)
        drop_head(directory)

    with mock.patch.object(Classifier, "save", forgetful):
        yield healthy.llama, {}


@fault("merging_changes_little", deep=True, status="warn")
def merged_into_nf4(healthy, out):
    yield recipe_file(healthy, out, backbone__precision="nf4"), {}


@fault("files_as_trained")
def adapter_damaged_after_training(healthy, out):
    target = copied(healthy.run, out)
    file = target / "fold-0" / "adapter" / "adapter_model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 8
    file.write_bytes(bytes(damaged))
    yield target, {}


@fault("logged_learning_rate")
def run_trained_at_another_rate(healthy, out):
    target = copied(healthy.run, out)
    for path in target.glob("fold-*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps(line | {"learning_rate": 1e-6}) for line in lines) + "\n")
    yield target, {}


# --- data and stores


def data_copy(healthy: Healthy, out: Path) -> Path:
    target = out / "data"
    target.mkdir()
    for name in ("rows.parquet", "folds.parquet", "manifest.json"):
        shutil.copy(healthy.data / name, target / name)
    return target


def with_column(path: Path, name: str, values) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    at = table.column_names.index(name)
    pq.write_table(
        table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type)), path
    )


@fault("prompts_stay_in_one_fold")
def prompt_in_two_folds(healthy, out):
    import pyarrow.parquet as pq

    target = data_copy(healthy, out)
    prompts = pq.read_table(target / "rows.parquet").column("prompt").to_pylist()
    prompts[0] = [turn.upper() + " " for turn in prompts[1]]
    folds = pq.read_table(target / "folds.parquet").column("fold").to_pylist()
    folds[0] = 1 - folds[1]
    with_column(target / "rows.parquet", "prompt", prompts)
    with_column(target / "folds.parquet", "fold", folds)
    yield target, {}


@fault("ids_are_unique")
def duplicate_row_id(healthy, out):
    import pyarrow.parquet as pq

    target = data_copy(healthy, out)
    ids = pq.read_table(target / "rows.parquet").column("row_id").to_pylist()
    with_column(target / "rows.parquet", "row_id", [ids[1], *ids[1:]])
    yield target, {}


@fault("labels_are_balanced")
def class_never_read(healthy, out):
    import pyarrow.parquet as pq

    target = data_copy(healthy, out)
    labels = pq.read_table(target / "rows.parquet").column("label").to_pylist()
    with_column(target / "rows.parquet", "label", [0 if label == 2 else label for label in labels])
    yield target, {}


@fault("store_fits_rows")
def rows_prepared_again_under_a_run(healthy, out):
    from data.arena import ArenaConfig, simulate_arena
    from data.dataset import prepare

    prepare(simulate_arena(ArenaConfig(n_rows=96, seed=2)), out / "other", n_folds=2)
    yield healthy.run, {"data": out / "other"}


def restored(healthy: Healthy, out: Path, change, **manifest) -> Path:
    """The run with other logits in its store."""
    from data.softlabels import read_store, write_logits

    target = copied(healthy.run, out)
    store = read_store(target)
    write_logits(target / "oof.parquet", store.row_ids, store.fold, change(store), store.classes)
    edited(target / "manifest.json", **manifest)
    return target


@fault("order_symmetry")
def model_prefers_the_first_answer(healthy, out):
    def shift(store):
        logits = store.logits.copy()
        logits[:, 0, 0] += 1.0
        logits[:, 1, 1] += 1.0
        return logits

    yield restored(healthy, out, shift), {"data": healthy.data}


@fault("soft_labels_are_out_of_fold")
def in_sample_labels_declared_out_of_fold(healthy, out):
    """As a model that has memorised half of its rows predicts them."""
    from data.schema import read_rows

    rows = read_rows(healthy.data)

    def memorised(store):
        rng = np.random.default_rng(0)
        known = rng.random(len(rows)) < 0.9
        target = np.where(known[:, None], rows.targets, 1 / 3)
        return np.repeat((1.5 * target + 0.3 * rng.standard_normal(target.shape))[:, None], 2, axis=1)

    yield restored(healthy, out, memorised), {"data": healthy.data}


@fault("soft_labels_are_out_of_fold")
def labels_that_say_they_are_in_sample(healthy, out):
    yield restored(healthy, out, lambda store: store.logits, label_kind="in_sample"), {"data": healthy.data}
