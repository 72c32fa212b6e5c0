"""What needs no training: class shares, lengths, words, and frozen states of pretrained models.

All by the same regression (:mod:`distill.race.probe`), on the same folds, so that they compare row by row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pretrained_data import rows_of, ukp_rows
from benchmarks.pretrained_scores import Judge, header, line
from data.console.command import format_table
from data.files import write_json
from data.folds import Folds, make_folds
from data.ids import align
from data.schema import Rows
from data.softlabels import softmax
from distill.race.frozen import frozen_states
from distill.race.probe import length_features, probe, state_features, texts_of
from ensemble.scoring.crossfit import cross_fitted_prior

WORDS_C = 0.1
"""Inverse strength of the penalty on words."""


def read_by(model: Path, name: str, shared: Path, out: Path) -> str:
    """Read a set's distinct texts by a frozen model, unless that is done; return what was read."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from distill.quiet import quiet_transformers

    if out.exists():
        return "stands"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet_transformers():
        found = AutoModel.from_pretrained(model, dtype=torch.float32).to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
    texts = texts_of(rows_of(name, shared))
    states = frozen_states(found, tokenizer, texts.texts, model.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, states)
    return f"{len(states):,} texts, {states.shape[1]} numbers each"


def words(rows: Rows, folds: Folds) -> np.ndarray:
    """Predict each fold by TF-IDF of words and pairs of words, and lengths, both orders averaged, (n, K)."""
    from scipy.sparse import csr_matrix, hstack, vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    sides = [
        ["\n".join(turns) for turns in rows.table.column(name).to_pylist()]
        for name in ("response_a", "response_b")
    ]
    lengths = length_features(rows)
    lengths /= lengths.std(axis=(0, 1))
    found = np.zeros((len(rows), rows.classes.n))
    for fold in range(folds.n_folds):
        inside, held = np.flatnonzero(folds.fold != fold), np.flatnonzero(folds.fold == fold)
        tfidf = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        tfidf.fit([side[i] for side in sides for i in inside])
        first, second = (tfidf.transform(side) for side in sides)
        orders = [
            hstack([gap, csr_matrix(part)]).tocsr()
            for gap, part in ((first - second, lengths[0]), (second - first, lengths[1]))
        ]
        labels = [rows.labels[inside], np.array(rows.classes.permutation)[rows.labels[inside]]]
        model = LogisticRegression(C=WORDS_C, max_iter=500)
        model.fit(vstack([part[inside] for part in orders]), np.concatenate(labels))
        logs = [model.predict_log_proba(part[held]) for part in orders]
        found[held] = softmax((logs[0] + logs[1][:, rows.classes.permutation]) / 2)
    return found


def untrained(rows: Rows, folds: Folds) -> dict[str, np.ndarray]:
    """What class shares and lengths predict, each (n, K), by name."""
    return {
        "class shares": cross_fitted_prior(rows.targets, folds.fold),
        "lengths": probe(length_features(rows), rows, folds),
    }


def frozen(name: str, shared: Path, features: Path, rows: Rows, folds: Folds) -> dict[str, np.ndarray]:
    """What each frozen model's states of a set predict of some of its rows, each (n, K), by name."""
    whole = rows_of(name, shared)
    texts = texts_of(whole)
    texts = replace(texts, sides=texts.sides[align(rows.row_ids, whole.row_ids, name)])
    return {
        path.stem.removeprefix(f"{name}-") + ", frozen": probe(
            state_features(np.load(path), texts, rows), rows, folds
        )
        for path in sorted(features.glob(f"{name}-*.npy"))
    }


def baselines(name: str, shared: Path, features: Path, n_folds: int, out: Path) -> str:
    """Score every baseline of a set; write the numbers and return the table.

    Parameters
    ----------
    n_folds : int
        Folds by prompt group; 0 leaves out one group at a time and looks at the strict rows only.
    """
    if name == "ukp":
        rows, strict = ukp_rows(shared)
    else:
        rows = rows_of(name, shared)
        strict = rows.labels < 2
    if not n_folds:
        kept = np.flatnonzero(strict)
        rows, strict = rows.take(kept), strict[kept]
    folds = make_folds(rows, n_folds or 2, seed=0)
    if not n_folds:
        fold = np.unique(folds.group_ids, return_inverse=True)[1].astype(np.int64)
        folds = replace(folds, fold=fold)
    judge = Judge.of(rows, folds, strict)
    found = untrained(rows, folds)
    if name == "ukp":
        found["TF-IDF, lengths"] = words(rows, folds)
    found |= frozen(name, shared, features, rows, folds)
    scores = {what: judge.score(probs, found["lengths"]) for what, probs in found.items()}
    write_json(out, scores)
    return format_table(header("lengths"), [line(what, score) for what, score in scores.items()])
