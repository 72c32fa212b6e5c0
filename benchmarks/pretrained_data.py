"""The real rows that the pretrained models are run on, by the roads that ``data.prepare`` takes.

UKPConvArg1 (Habernal and Gurevych, ACL 2016, CC-BY 4.0) comes as JSON lines with counts of votes; a row
table has shares, so they are written beside the counts first, and the rest is a column map, as a user would
give it::

    python -m data.prepare --source ukp.jsonl --format table --classes a,b,tie --near off --folds 4 \
        --columns label_probs=share_a,share_b,share_tie --out DIR

Rows of a debate have its title as prompt, so folds by prompt are folds by debate.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np

from data.schema import Rows
from data.sources.read import SourceOptions, read_source

UKP, LMSYS, PANDALM = "ukp/pairs.jsonl.gz", "lmsys/preferences.csv", "pandalm/testset-v1.json"
CLASSES = ("a", "b", "tie")


def ukp_rows(shared: Path, votes: bool = False) -> tuple[Rows, np.ndarray]:
    """Read the pairs of arguments.

    Parameters
    ----------
    shared : Path
        Directory of the data.
    votes : bool
        Give the shares of the five votes as soft labels.

    Returns
    -------
    rows : Rows
        Labelled a, b or tie by the set's own aggregation of the votes.
    strict : ndarray of bool, shape (n,)
        The cleaned subset that published accuracies are of, without two rows of it that are ties.
    """
    with gzip.open(shared / UKP, "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    for pair in pairs:
        counts = [pair[f"votes_{name}"] for name in CLASSES]
        for name, count in zip(CLASSES, counts, strict=True):
            pair[f"share_{name}"] = count / sum(counts)
    columns = {"label_probs": ",".join(f"share_{name}" for name in CLASSES)} if votes else {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "ukp.jsonl"
        path.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
        options = SourceOptions(format="table", columns=columns, classes=CLASSES, name="ukp")
        rows, _ = read_source(str(path), options)
    return rows, np.array([pair["strict"] and pair["label"] != "tie" for pair in pairs])


def rows_of(name: str, shared: Path) -> Rows:
    """Rows of a set by name: ukp, lmsys or pandalm."""
    if name == "ukp":
        return ukp_rows(shared)[0]
    rows, _ = read_source(str(shared / {"lmsys": LMSYS, "pandalm": PANDALM}[name]))
    return rows
