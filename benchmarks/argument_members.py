"""Eleven models of argument pairs, out of fold: ``python -m benchmarks.argument_members SHARED --out DIR``.

Models of words, of letters and of lengths and punctuation predict which of two web arguments convinces more
(UKPConvArg1, Habernal and Gurevych, ACL 2016), folds by debate, each trained on both orders of a pair. Some
are alike, some weak, one far too sure of itself. ``DIR`` is then what ``ensemble.stack`` and
``benchmarks.few_rows`` take.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightgbm import LGBMClassifier
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

from benchmarks.pretrained_data import CLASSES, ukp_rows
from data.files import write_text
from data.folds import make_folds
from data.schema import Rows
from ensemble.solvers.numbers import log_loss

N_FOLDS = 4
SWAP = np.array([1, 0, 2])
MARKS = ",.;:!?'\"()"


def style(texts: list[str]) -> np.ndarray:
    """Lengths, marks and capitals of each text."""
    counts = [[len(t), len(t.split()), sum(c.isupper() for c in t), *map(t.count, MARKS)] for t in texts]
    return np.log1p(np.array(counts, dtype=np.float64))


def models() -> dict[str, tuple[str, Any]]:
    """What each model reads, and the model."""
    trees = {"min_samples_leaf": 20, "random_state": 0}

    def logit(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=300)

    return {
        "lengths": ("lengths", logit(1.0)),
        "style": ("style", logit(0.1)),
        "words": ("words", logit(0.1)),
        "words_loose": ("words", logit(3.0)),
        "words_style": ("words and style", logit(0.1)),
        "letters": ("letters", logit(0.1)),
        "boosting": ("style", LGBMClassifier(num_leaves=8, n_estimators=80, num_threads=1, verbosity=-1)),
        "forest": ("style", RandomForestClassifier(100, **trees)),
        "extra_trees": ("style", ExtraTreesClassifier(100, **trees)),
        "neighbours": ("style", KNeighborsClassifier(10)),
        "bayes": ("style", GaussianNB()),
    }


def views(rows: Rows, inside: np.ndarray) -> dict[str, Any]:
    """The gap between both sides of each row by what is read of it, words being those of the rows inside."""
    sides = [
        ["\n".join(turns) for turns in rows.table.column(name).to_pylist()]
        for name in ("response_a", "response_b")
    ]
    known = sorted({side[i] for side in sides for i in inside.tolist()})
    manner = style(sides[0]) - style(sides[1])
    found: dict[str, Any] = {"lengths": manner[:, :2], "style": manner}
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), min_df=5, sublinear_tf=True)
    for name, reader in (("words", words), ("letters", letters)):
        reader.fit(known)
        first, second = (reader.transform(side) for side in sides)
        found[name] = (first - second).tocsr()
    found["words and style"] = hstack([found["words"], csr_matrix(manner)]).tocsr()
    return found


def predict(rows: Rows) -> dict[str, np.ndarray]:
    """Predictions of each model (n, 3), out of fold by debate."""
    fold = make_folds(rows, N_FOLDS, seed=0).fold
    found = {name: np.empty((len(rows), 3)) for name in models()}
    for number in range(N_FOLDS):
        inside, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        seen = views(rows, inside)
        labels = np.concatenate([rows.labels[inside], SWAP[rows.labels[inside]]])
        for name, (what, model) in models().items():
            part = seen[what][inside]
            both = np.concatenate([part, -part]) if isinstance(part, np.ndarray) else vstack([part, -part])
            found[name][held] = model.fit(both, labels).predict_proba(seen[what][held])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("shared", type=Path, metavar="SHARED", help="directory that holds ukp/pairs.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    rows, _ = ukp_rows(args.shared)
    args.out.mkdir(parents=True, exist_ok=True)
    names = np.array(CLASSES)
    print("| model | log-loss |\n|---|---|")
    for name, probs in predict(rows).items():
        columns = {label: probs[:, k] for k, label in enumerate(CLASSES)}
        pq.write_table(pa.table({"id": rows.row_ids, **columns}), args.out / f"{name}.parquet")
        print(f"| {name} | {log_loss(probs, np.eye(3)[rows.labels]).mean():.4f} |", flush=True)
    lines = [f"{i},{label}" for i, label in zip(rows.row_ids, names[rows.labels].tolist(), strict=True)]
    write_text(args.out / "labels.csv", "\n".join(["id,label", *lines, ""]))


if __name__ == "__main__":
    main()
