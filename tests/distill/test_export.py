"""A deployed student is one plain model that predicts what the run predicts, in any process."""

import ast
import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.csv as pc
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.arena import ArenaConfig, simulate_arena
from data.dataset import prepare
from data.errors import UserError
from data.files import locked
from data.prepare import main as prepare_main
from data.schema import read_rows
from data.softmax import softmax
from distill import export, predict, teacher_oof
from distill.doctor.examine import examine
from distill.doctor.subject import open_subjects
from distill.prediction.card import scores
from distill.prediction.merge import merged_model, plain_state
from distill.runs.loaded import predict_rows
from distill.runs.saved import read_saved

PLAIN = """
import json, sys
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
AutoTokenizer.from_pretrained(sys.argv[1])
sequences = json.load(sys.stdin)
with torch.no_grad():
    alone = [model(input_ids=torch.tensor([ids])).logits[0].tolist() for ids in sequences]
    longest = max(map(len, sequences))
    padded = [ids + [model.config.pad_token_id] * (longest - len(ids)) for ids in sequences]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]
    batch = model(input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask)).logits.tolist()
json.dump([alone, batch, model.config.id2label["0" if "0" in model.config.id2label else 0]], sys.stdout)
"""


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "student"
    export.main(["--model", str(trained / "student"), "--out", str(out), "--license", "apache-2.0"])
    return out


def sequences_of(trained, model):
    from dataclasses import asdict

    from data.encoding.encode import Encoder, Truncation
    from data.encoding.template import Template
    from distill.runs.saved import checked_tokenizer

    encoder = Encoder(
        checked_tokenizer(model),
        Template(**model.manifest["template"]),
        Truncation(**asdict(model.model.encode)),
    )
    return encoder.encode(read_rows(trained))


def test_a_plain_load_in_a_new_process_gives_the_runs_logits(trained, exported):
    saved = read_saved(trained / "student")
    rows = read_rows(trained).take(np.arange(6))
    wanted = predict_rows(saved, rows)[:, 0]
    encoded = sequences_of(trained, read_saved(exported))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(exported)],
        input=json.dumps([encoded[2 * i].tolist() for i in range(6)]),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    alone, batch, first = json.loads(done.stdout)
    wanted = wanted / json.loads((exported / "distillstack.json").read_text())["scores"]["folded"]
    np.testing.assert_allclose(alone, wanted, atol=1e-4)
    np.testing.assert_allclose(batch, wanted, atol=1e-4)
    assert np.abs(wanted).max() > 0.01
    assert first == "winner_model_a"


def test_a_temperature_is_folded_into_the_head_where_it_helps_cross_fitted(trained, exported, tmp_path):
    rows = read_rows(trained)
    scores = json.loads((exported / "distillstack.json").read_text())["scores"]
    helps = scores["log_loss_tempered"] < scores["log_loss"]
    assert scores["folded"] == (scores["temperature"] if helps else 1)
    words = "is folded into its head" if helps else "is not applied"
    assert words in (exported / "README.md").read_text()
    out = tmp_path / "student.csv"
    predict.main(["--model", str(exported), "--data", str(trained / "rows.parquet"), "--out", str(out)])
    table = pc.read_csv(out)
    probs = np.stack([table[name].to_numpy() for name in rows.classes.names], axis=1)
    logits = predict_rows(read_saved(trained / "student"), rows).mean(axis=1)
    np.testing.assert_allclose(probs, softmax(logits / scores["folded"]), atol=1e-4)


def test_a_temperature_that_is_not_applied_is_not_printed(trained, tmp_path, monkeypatch, capsys):
    def hardly(*given):
        found = scores(*given)
        return {**found, "temperature": 3.434, "log_loss_tempered": found["log_loss"] + 0.1}

    monkeypatch.setattr("distill.prediction.card.scores", hardly)
    export.main(["--model", str(trained / "student"), "--out", str(tmp_path / "out")])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "3.434" not in line
    assert line.split()[3] == "1.000"


def test_the_card_says_what_the_model_rests_on(exported):
    card = (exported / "README.md").read_text()
    head = ModelCard(card).data
    assert (head.license, head.tags) == ("apache-2.0", ["distillation", "preference", "distillstack"])
    scores = json.loads((exported / "distillstack.json").read_text())["scores"]
    low, high = scores["log_loss_ci95"]
    loss, accuracy = head.eval_results
    assert loss.metric_value == round(scores["log_loss"], 4)
    assert f"95 % interval {low:.4f} to {high:.4f}" in loss.metric_name
    assert accuracy.metric_value == round(scores["accuracy"], 4)
    for words in (
        "both orders of a pair averaged",
        "oof soft labels, standard leakage",
        "gemma2, llama",
        "95 % interval",
        "96 rows, 2 folds",
    ):
        assert words in card
    scores = json.loads((exported / "distillstack.json").read_text())["scores"]
    low, high = scores["log_loss_ci95"]
    assert low < scores["log_loss"] < high


def test_fold_students_are_averaged_as_changes_not_as_factors(trained, tmp_path):
    out = tmp_path / "mean"
    export.main(["--model", str(trained / "student"), "--out", str(out), "--average"])
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    saved = read_saved(trained / "student")
    merged = AutoModelForSequenceClassification.from_pretrained(out).state_dict()
    folds = [
        load_file(trained / "student" / f"fold-{k}" / "adapter" / "adapter_model.safetensors") for k in (0, 1)
    ]
    name = "model.layers.0.mlp.down_proj"
    a, b = ([f[f"base_model.model.{name}.lora_{x}.weight"] for f in folds] for x in "AB")
    scaling = saved.model.lora.alpha / saved.model.lora.r
    base = merged_model(saved.model, saved.manifest["backbone_path"], saved.weights, 3, torch.float32)
    final = load_file(saved.weights[0] / "adapter_model.safetensors")
    delta = final[f"base_model.model.{name}.lora_B.weight"] @ final[f"base_model.model.{name}.lora_A.weight"]
    plain = base.state_dict()[f"{name}.weight"] - scaling * delta
    change = merged[f"{name}.weight"] - plain
    right = scaling * (b[0] @ a[0] + b[1] @ a[1]) / 2
    wrong = scaling * (b[0] + b[1]) @ (a[0] + a[1]) / 4
    torch.testing.assert_close(change, right, atol=1e-5, rtol=1e-3)
    assert (change - wrong).abs().max() > 10 * (change - right).abs().max()


def test_plain_state_of_an_unadapted_model_is_its_own(trained):
    from transformers import AutoModelForSequenceClassification

    path = json.loads((trained / "student" / "manifest.json").read_text())["backbone_path"]
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    state = plain_state(model)
    assert set(state) == set(dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name], parameter)


def test_mistakes_of_exporting_are_named(trained, exported, tmp_path):
    with pytest.raises(UserError, match="give --average"):
        export.main(["--model", str(trained / "llama"), "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_an_exported_model_is_a_backbone_whose_head_is_discarded(exported, n_classes):
    """A pre-stage: train on auxiliary data, export, and start the student from there."""
    from transformers import AutoModelForSequenceClassification

    from distill.config import BackboneConfig
    from distill.model.backbone import load_base

    started = load_base(BackboneConfig(path=str(exported), precision="fp32"), str(exported), n_classes)
    before = AutoModelForSequenceClassification.from_pretrained(exported)
    assert before.score.weight.abs().max() > 0
    assert started.score.weight.shape[0] == n_classes
    assert not started.score.weight.any()
    for name, parameter in before.model.named_parameters():
        assert torch.equal(started.model.get_parameter(name), parameter)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("distillstack.json", {"temperature": -1}, "no number above 0"),
        ("distillstack.json", {"classes": ["a", "b", "c"]}, "name other classes"),
        ("distillstack.json", {"template": None}, "says nothing of template"),
        ("config.json", {"dtype": "int8"}, "which no export leaves"),
        ("config.json", {"rms_norm_eps": 0.1}, "config.json: was changed or damaged after the export"),
        ("distillstack.json", {"temperature": 0.1}, "distillstack.json: was changed or damaged after"),
        ("distillstack.json", {"files": None}, "exported by an earlier version"),
        ("tokenizer_config.json", {"bos_token": "a"}, "tokenizer_config.json: was changed"),
        ("adapter_config.json", {}, "adapter_config.json: was added after the export"),
    ],
)
def test_an_exported_model_that_was_changed_is_refused(trained, exported, tmp_path, file, change, words):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    before = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    (copy / file).write_text(json.dumps(before | change))
    with pytest.raises(UserError, match=words):
        predict.main(["--model", str(copy), "--data", str(trained), "--out", str(tmp_path / "out.csv")])
    assert not (tmp_path / "out.csv").exists()


def probabilities(path, names):
    table = pc.read_csv(path)
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def test_an_edited_export_is_used_where_the_command_accepts_it(trained, exported, tmp_path, caplog):
    copy, names = tmp_path / "copy", read_rows(trained).classes.names
    shutil.copytree(exported, copy)
    settings = json.loads((copy / "distillstack.json").read_text())
    (copy / "distillstack.json").write_text(json.dumps(settings | {"temperature": 0.1}))
    for model, out, more in ((exported, "as_was", []), (copy, "edited", ["--accept-changed"])):
        out = str(tmp_path / f"{out}.csv")
        predict.main(["--model", str(model), "--data", str(trained), "--out", out, *more])
    assert "distillstack.json: was changed or damaged after the export; it is used as it is" in caplog.text
    before, after = (probabilities(tmp_path / f"{name}.csv", names) for name in ("as_was", "edited"))
    np.testing.assert_allclose(after, softmax(np.log(before) / 0.1), atol=1e-4)


def assert_card_predicts(exported, tmp_path, rows_csv):
    """The card's lines, in a process that cannot import any of this project, give what predict gives."""
    rows = tmp_path / "rows.csv"
    rows.write_text(rows_csv)
    predict.main(["--model", str(exported), "--data", str(rows), "--out", str(tmp_path / "out.csv")])
    card = (exported / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 13
    lines = "import sys\nsys.modules.update(dict.fromkeys(['data', 'ensemble', 'distill']))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", lines + code], cwd=exported, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    (wanted,) = probabilities(tmp_path / "out.csv", list(found))
    np.testing.assert_allclose(list(found.values()), wanted, atol=1e-5)


def test_the_cards_own_lines_give_predicts_probabilities_with_plain_transformers(exported, tmp_path):
    row = 'id,prompt,response_a,response_b\n7,"[""Hi""]","[""Hello!""]","[""No.""]"\n'
    assert_card_predicts(exported, tmp_path, row)


def test_a_padded_decoder_of_plain_texts_is_exported_and_predicted_with(tmp_path, tiny_recipe):
    source, data, out = tmp_path / "train.csv", tmp_path / "data", tmp_path / "mean"
    lines = ["id,prompt,label", *(f"r{i},text number {i},c{i % 3}" for i in range(30))]
    source.write_text("\n".join(lines) + "\n")
    prepare_main(["--source", str(source), "--out", str(data), "--folds", "2", "--near", "off"])
    recipe = ["--recipe", str(tiny_recipe), "teachers.llama.backbone.packed=false"]
    recipe += ["teachers.llama.backbone.precision=fp32", "teachers.llama.train.epochs=1"]
    teacher_oof.main([*recipe, "--data", str(data), "--only", "llama"])
    export.main(["--model", str(data / "llama"), "--out", str(out), "--average"])
    settings = json.loads((out / "distillstack.json").read_text())
    assert settings["packed"] is False
    card = (out / "README.md").read_text()
    assert "pair" not in card
    assert "preference" not in card
    assert_card_predicts(out, tmp_path, "id,prompt\n7,Hi\n")


def test_a_backbone_that_pads_with_eos_is_exported_to_pad_and_pool_alike(trained, tmp_path, tiny_recipe):
    """As SmolLM2 is published; configuration and tokenizer of the export once named two tokens."""
    base, out = tmp_path / "base", tmp_path / "mean"
    shutil.copytree(next((trained / "backbones").glob("tiny-llama-*")), base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    prepare(simulate_arena(ArenaConfig(n_rows=40)), tmp_path / "data", n_folds=2)
    own = ["backbone.tiny=null", f"backbone.path={base}", "backbone.precision=fp32", "train.epochs=1"]
    recipe = ["--recipe", str(tiny_recipe), *(f"teachers.llama.{line}" for line in own)]
    teacher_oof.main([*recipe, "--data", str(tmp_path / "data"), "--only", "llama"])
    export.main(["--model", str(tmp_path / "data" / "llama"), "--out", str(out), "--average"])

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    texts = ["short", "one that is longer than the other"]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    (subject,) = open_subjects(str(out), tmp_path / "scratch")
    assert [finding.status for finding in examine(subject, ["pad_token"])] == ["pass"]


def test_written_models_follow_the_umask_and_the_tokenizer_has_its_length(trained, exported):
    umask = os.umask(0o022)
    os.umask(umask)
    for file in [*exported.iterdir(), *(trained / "student" / "final" / "adapter").iterdir()]:
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask, file
    assert json.loads((exported / "tokenizer_config.json").read_text())["model_max_length"] == 192


@pytest.mark.parametrize("licence", ["mit\nbase_model: a/b", "[x]", "", "a: b", "x" * 65])
def test_a_licence_that_would_write_into_the_cards_head_is_refused(trained, tmp_path, licence):
    with pytest.raises(UserError, match="no licence's identifier"):
        export.main(["--model", str(trained / "student"), "--out", str(tmp_path / "x"), "--license", licence])


def test_a_command_killed_after_its_last_rename_may_be_started_again(trained, exported):
    before = {file.name: file.stat().st_mtime_ns for file in exported.iterdir()}
    words = ["--model", str(trained / "student"), "--out", str(exported)]
    export.main([*words, "--license", "apache-2.0"])
    with pytest.raises(UserError, match="holds another export"):
        export.main([*words, "--license", "mit"])
    assert {file.name: file.stat().st_mtime_ns for file in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_a_directory_of_something_else_is_not_written_over(trained, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        export.main(["--model", str(trained / "student"), "--out", str(tmp_path)])


def test_exported_weights_that_were_damaged_are_refused(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    file = copy / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 8
    file.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match="changed or damaged after the export"):
        read_saved(copy)


def test_an_output_that_is_a_file_or_held_is_refused(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file of that name is in the way"):
        export.main(["--model", str(trained / "student"), "--out", str(tmp_path / "file")])
    (tmp_path / "held").mkdir()
    with locked(tmp_path / "held"), pytest.raises(UserError, match="another command is writing there"):
        export.main(["--model", str(trained / "student"), "--out", str(tmp_path / "held")])


@pytest.mark.parametrize("file", ["config.json", "distillstack.json"])
def test_no_value_of_another_kind_ends_in_a_traceback(trained, exported, tmp_path, file):
    """Accepted knowingly or not, a field is used or refused in words."""
    before, copy = json.loads((exported / file).read_text()), tmp_path / "copy"
    shutil.copytree(exported, copy)
    for key in before:
        for value in (True, -1, [1], {"a": 1}, "x"):
            (copy / file).write_text(json.dumps(before | {key: value}))
            for more in ([], ["--accept-changed"]):
                with contextlib.suppress(UserError):
                    out = str(tmp_path / "out.csv")
                    predict.main(["--model", str(copy), "--data", str(trained), "--out", out, *more])
                (tmp_path / "out.csv").unlink(missing_ok=True)
