"""A stack applied in a new process gives the fitted object's numbers, or says which member is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stack_files import CLASSES, write_csv, write_sets

from data.classes import PREFERENCE
from data.errors import UserError
from data.files import sha256_text
from ensemble.methods.blend import SimplexBlend
from ensemble.methods.catalogue import METHODS, fit_methods
from ensemble.output import write_result
from ensemble.predict import load_fresh, main
from ensemble.reading.load import load_problem
from ensemble.reading.members import load_member
from ensemble.saved import load_stack, save_stack
from ensemble.scoring.results import evaluate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of m1 and m2, with fresh predictions of both beside it."""
    folder = tmp_path_factory.mktemp("stack")
    paths, labels = write_sets(folder / "train", n=200)
    write_sets(folder / "fresh", n=80, seed=9)
    problem = load_problem(paths, Path(labels))
    write_result(folder / "stack", problem, evaluate(problem, draws=100))
    return folder


def fresh_matrix(folder: Path) -> np.ndarray:
    return np.stack([load_member(folder / f"m{m}.csv", PREFERENCE).probs for m in (1, 2)], axis=1)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_predicts_the_same_after_a_reload(stack: Path, tmp_path: Path, name: str) -> None:
    P = fresh_matrix(stack / "train")
    y = np.random.default_rng(0).integers(3, size=len(P))
    method = fit_methods(P, y, None, PREFERENCE.swap)[name]
    content = {"classes": list(CLASSES), "members": ["m1", "m2"], "chosen": name}
    save_stack(tmp_path, content, method)
    _, again = load_stack(tmp_path)
    fresh = fresh_matrix(stack / "fresh")
    np.testing.assert_array_equal(again.predict_proba(fresh), method.predict_proba(fresh))


def test_a_new_process_gives_the_fitted_numbers(stack: Path, tmp_path: Path) -> None:
    paths = [stack / "fresh" / f"m{m}.csv" for m in (2, 1)]
    train = stack / "train"
    result = evaluate(
        load_problem([str(train / f"m{m}.csv") for m in (1, 2)], train / "labels.csv"), draws=100
    )
    wanted = result.fitted[result.chosen].predict_proba(fresh_matrix(stack / "fresh"))
    for suffix in (".csv", ".parquet"):
        out = tmp_path / f"blend{suffix}"
        command = [sys.executable, "-m", "ensemble.predict", "--stack", stack / "stack", "--oof", *paths]
        subprocess.run([*map(str, command), "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
        found = load_member(out, PREFERENCE)
        np.testing.assert_allclose(found.probs, wanted, atol=1e-12)
        assert found.row_ids == load_member(paths[1], PREFERENCE).row_ids


def test_members_are_matched_by_name(stack: Path, tmp_path: Path) -> None:
    m1, m2 = (str(stack / "fresh" / f"m{m}.csv") for m in (1, 2))
    arguments = ["--stack", str(stack / "stack"), "--out", str(tmp_path / "a.csv"), "--oof"]
    with pytest.raises(UserError, match="no predictions of m2"):
        main([*arguments, m1])
    with pytest.raises(UserError, match="m9 is no member"):
        main([*arguments, m1, m2, f"m9={m2}"])
    with pytest.raises(UserError, match="a second set named m1"):
        main([*arguments, m1, f"m1={m2}"])
    assert not (tmp_path / "a.csv").exists()
    main([*arguments, f"m2={m2}", m1])
    content, _ = load_stack(stack / "stack")
    np.testing.assert_array_equal(load_fresh([m2, m1], content, stack)[1], fresh_matrix(stack / "fresh"))
    other = load_fresh([f"m2={m1}", f"m1={m2}"], content, stack)[1]
    np.testing.assert_array_equal(other, fresh_matrix(stack / "fresh")[:, ::-1])


def test_other_rows_classes_and_outputs_are_refused(stack: Path, tmp_path: Path) -> None:
    m1, m2 = (str(stack / "fresh" / f"m{m}.csv") for m in (1, 2))
    head = ["--stack", str(stack / "stack"), "--out", str(tmp_path / "a.csv"), "--oof"]
    short = Path(m2).read_text(encoding="utf-8").splitlines()[:-1]
    (tmp_path / "m2.csv").write_text("\n".join(short), encoding="utf-8")
    with pytest.raises(UserError, match="r0079"):
        main([*head, m1, str(tmp_path / "m2.csv")])
    other = write_csv(tmp_path / "m2.csv", ["id", "a", "b", "c"], [["r0000", 0.2, 0.3, 0.5]])
    with pytest.raises(UserError, match="winner_model_a"):
        main([*head, m1, str(other)])
    with pytest.raises(UserError, match=r"\.csv or \.parquet"):
        main(["--stack", str(stack / "stack"), "--out", str(tmp_path / "a.txt"), "--oof", m1, m2])
    with pytest.raises(UserError, match="no such stack"):
        main(["--stack", str(tmp_path / "none"), *head[2:], m1, m2])


def test_damage_to_a_stack_is_noticed(stack: Path, tmp_path: Path) -> None:
    P = fresh_matrix(stack / "train")
    rng = np.random.default_rng(0)
    y = np.array([rng.choice(3, p=p) for p in P[:, 0]])
    method = fit_methods(P, y, None, PREFERENCE.swap)["logit+lightgbm"]
    save_stack(tmp_path, {"classes": list(CLASSES), "members": ["m1", "m2"], "chosen": "x"}, method)
    trees = sorted(tmp_path.glob("lightgbm-*.txt"))
    for tree in trees[:1]:
        tree.write_text(
            tree.read_text(encoding="utf-8").replace("leaf_value=", "leaf_value=9"), encoding="utf-8"
        )
        with pytest.raises(UserError, match=tree.name):
            load_stack(tmp_path)
        tree.unlink()
        with pytest.raises(UserError, match=tree.name):
            load_stack(tmp_path)
    (tmp_path / "stack.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        load_stack(tmp_path)
    (tmp_path / "stack.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is it a stack"):
        load_stack(tmp_path)


def test_models_of_several_folds_are_averaged_only_on_request(stack: Path, tmp_path: Path) -> None:
    m1, m2 = (str(stack / "fresh" / f"m{m}.csv") for m in (1, 2))
    arguments = [
        "--stack",
        str(stack / "stack"),
        "--out",
        str(tmp_path / "a.csv"),
        "--oof",
        m1,
        f"m1={m2}",
        m2,
    ]
    with pytest.raises(UserError, match="--average-folds"):
        main(arguments)
    main([*arguments, "--average-folds"])
    content, method = load_stack(stack / "stack")
    P = fresh_matrix(stack / "fresh")
    P[:, 0] = P.mean(axis=1)
    wanted = method.predict_proba(P)
    np.testing.assert_allclose(load_member(tmp_path / "a.csv", PREFERENCE).probs, wanted, atol=1e-12)
    np.testing.assert_allclose(load_fresh([m1, f"m1={m2}", m2], content, stack, True)[1], P, atol=1e-12)
    other = write_csv(tmp_path / "m1.csv", ["id", *CLASSES], [["r0000", 0.2, 0.3, 0.5]])
    with pytest.raises(UserError, match="different rows"):
        main([*arguments, str(other), "--average-folds"])


SPOILT: dict[str, Callable[[dict], object]] = {
    "members as numbers": lambda stack: stack.update(members=[1, 2]),
    "members twice": lambda stack: stack.update(members=["m1", "m1"]),
    "classes as a word": lambda stack: stack.update(classes="abc"),
    "classes as numbers": lambda stack: stack.update(classes=[1, 2, 3]),
    "swap as words": lambda stack: stack.update(swap=["a"]),
    "swap out of range": lambda stack: stack.update(swap=[7, 8, 9]),
    "chosen as a list": lambda stack: stack.update(chosen=[]),
    "fitted as a list": lambda stack: stack.update(fitted=[]),
    "files as a list": lambda stack: stack.update(files=[1]),
    "another kind": lambda stack: stack["fitted"].update(kind=["SimplexBlend"]),
    "no method": lambda stack: stack["fitted"].update(kind="TemperatureScaling"),
    "params as a list": lambda stack: stack["fitted"].update(params=[1]),
    "weights as words": lambda stack: stack["fitted"]["fitted"].update(weights_=["a", "b"]),
    "weights as null": lambda stack: stack["fitted"]["fitted"].update(weights_=None),
    "a weight more": lambda stack: stack["fitted"]["fitted"].update(weights_=[0.2, 0.3, 0.5]),
    "weights without end": lambda stack: stack["fitted"]["fitted"].update(weights_=[1e308, 1e308]),
    "weights of no sum": lambda stack: stack["fitted"]["fitted"].update(weights_=[3.0, 3.0]),
    "weights below nothing": lambda stack: stack["fitted"]["fitted"].update(weights_=[-4.0, 5.0]),
    "weights in weights": lambda stack: stack["fitted"]["fitted"].update(weights_=[[1.0], [1.0, 2.0]]),
    "trees elsewhere": lambda stack: stack["fitted"]["fitted"].update(trees_={"plain": ["../x.txt"]}),
    "trees as a number": lambda stack: stack["fitted"]["fitted"].update(trees_=5),
}


@pytest.mark.parametrize("how", SPOILT)
def test_wrong_types_signed_again_end_in_one_message(stack: Path, tmp_path: Path, how: str) -> None:
    """Whoever can write ``stack.json`` can sign it: its hash tells damage, not good intent."""
    paths = [str(stack / "fresh" / f"m{m}.csv") for m in (1, 2)]
    method = SimplexBlend().fit(fresh_matrix(stack / "train"), np.arange(200) % 3)
    save_stack(tmp_path, {"classes": list(CLASSES), "members": ["m1", "m2"], "chosen": "simplex"}, method)
    content = json.loads((tmp_path / "stack.json").read_text(encoding="utf-8"))
    del content["content_hash"]
    SPOILT[how](content)
    content["content_hash"] = sha256_text(json.dumps(content, sort_keys=True))
    (tmp_path / "stack.json").write_text(json.dumps(content), encoding="utf-8")
    arguments = ["--stack", str(tmp_path), "--oof", *paths, "--out", str(tmp_path / "a.csv")]
    with pytest.raises(UserError, match=r"stack\.json"):
        main(arguments)
    assert not (tmp_path / "a.csv").exists()


def test_hostile_trees_signed_again_are_refused(tmp_path: Path) -> None:
    """The file's name is the hash of what it holds, which whoever wrote it can compute."""
    rng = np.random.default_rng(0)
    P = rng.dirichlet([1, 1, 1], size=(300, 2))
    y = np.array([rng.choice(3, p=p) for p in np.roll(P[:, 0], 1, axis=1)])
    method = fit_methods(P, y)["lightgbm"]
    save_stack(tmp_path, {"classes": list(CLASSES), "members": ["m1", "m2"], "chosen": "lightgbm"}, method)
    trees = sorted(tmp_path.glob("lightgbm-*.txt"))
    assert trees
    text = trees[0].read_text(encoding="utf-8").replace("left_child=1", "left_child=0", 1)
    spoilt = f"lightgbm-{sha256_text(text)[:16]}.txt"
    (tmp_path / spoilt).write_text(text, encoding="utf-8")
    content = (tmp_path / "stack.json").read_text(encoding="utf-8").replace(trees[0].name, spoilt)
    signed = json.loads(content)
    del signed["content_hash"]
    signed["content_hash"] = sha256_text(json.dumps(signed, sort_keys=True))
    (tmp_path / "stack.json").write_text(json.dumps(signed), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{spoilt}: is no model of trees \(tree \d+: node 0 leads back"):
        load_stack(tmp_path)
