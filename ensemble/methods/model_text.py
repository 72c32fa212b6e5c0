"""LightGBM's text format read strictly, and written again from what was read.

LightGBM believes its files: a wrong number in one ends in an abort of the process, an endless loop or a read
outside the model. So a text that comes from a file never reaches it: it is taken apart here, every number is
checked against the shape of the trees, and a new text is made of the parts that predict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

MOST_FEATURES = 1_000_000
MOST_CLASSES = 100_000
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_DECISIONS = (0, 2, 4, 6, 8, 10)
"""Of numbers, not of categories: where a missing value goes, and what counts as missing."""


def checked_model(text: str) -> str:
    """Return a multiclass model of numeric trees as a text that LightGBM can load without harm.

    Parameters
    ----------
    text : str
        In LightGBM's format, from anywhere.

    Returns
    -------
    str
        The same trees; what does not predict (gains, counts, importances, parameters) is left out.

    Raises
    ------
    ValueError
        Something is missing, out of its range, not finite, or the nodes are no tree.
    """
    body, end, _ = text.partition("\nend of trees\n")
    if not end:
        raise ValueError("its trees have no end")
    head, *trees = body.split("\n\nTree=")
    header = _fields(head)
    classes = _whole(header, "num_class", 2, MOST_CLASSES)
    features = _whole(header, "max_feature_idx", 0, MOST_FEATURES) + 1
    if not head.startswith("tree\nversion=v4\n"):
        raise ValueError("its version is not v4")
    if _whole(header, "num_tree_per_iteration", 0, MOST_CLASSES) != classes or len(trees) % classes:
        raise ValueError(f"its {len(trees)} trees are not as many for each of {classes} classes")
    if header.get("objective") != f"multiclass num_class:{classes}":
        raise ValueError("its objective is not that of several classes")
    found = []
    for number, tree in enumerate(trees):
        first, _, rest = tree.partition("\n")
        if first != str(number):
            raise ValueError(f"tree {number} is not in its place")
        try:
            found.append(f"Tree={number}\n{_tree(_fields(rest), features)}\n\n\n")
        except ValueError as error:
            raise ValueError(f"tree {number}: {error}") from error
    lines = [
        "tree",
        "version=v4",
        f"num_class={classes}",
        f"num_tree_per_iteration={classes}",
        "label_index=0",
        f"max_feature_idx={features - 1}",
        f"objective=multiclass num_class:{classes}",
        "feature_names=" + " ".join(f"Column_{i}" for i in range(features)),
        "feature_infos=" + " ".join(repeat("none", features)),
        "tree_sizes=" + " ".join(str(len(tree)) for tree in found),
    ]
    return "\n".join(lines) + "\n\n" + "".join(found) + "end of trees\n"


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if line and key in fields:
            raise ValueError(f"{key[:40]} stands twice")
        fields[key] = value
    return fields


def _whole(fields: dict[str, str], key: str, low: int, high: int) -> int:
    return next(_numbers(fields, key, 1, _WHOLE, lambda text: low <= int(text) <= high, int))


def _numbers(
    fields: dict[str, str],
    key: str,
    count: int,
    pattern: re.Pattern[str],
    fits: Callable[[str], bool],
    kind: Callable[[str], Any] = str,
) -> Iterator[Any]:
    """So many numbers of a field, each of a pattern and within a range."""
    if key not in fields:
        raise ValueError(f"has no {key}")
    values = fields[key].split(" ") if fields[key] else []
    if len(values) != count:
        raise ValueError(f"{key} has {len(values)} of {count} numbers")
    for value in values:
        if not pattern.fullmatch(value) or not fits(value):
            raise ValueError(f"{key} is {value[:40]!r}, which it cannot be")
        yield kind(value)


def _tree(fields: dict[str, str], features: int) -> str:
    """The fields of a tree that predict, checked."""
    leaves = _whole(fields, "num_leaves", 1, 1 << 20)
    nodes = leaves - 1
    _whole(fields, "num_cat", 0, 0)
    _whole(fields, "is_linear", 0, 0)

    def finite(text: str) -> bool:
        return math.isfinite(float(text))

    kept = {"num_leaves": [str(leaves)], "num_cat": ["0"]}
    if nodes:
        kept["split_feature"] = list(
            _numbers(fields, "split_feature", nodes, _WHOLE, lambda text: 0 <= int(text) < features)
        )
        kept["threshold"] = list(_numbers(fields, "threshold", nodes, _NUMBER, finite))
        kept["decision_type"] = list(
            _numbers(fields, "decision_type", nodes, _WHOLE, lambda text: int(text) in _DECISIONS)
        )
        children = {
            key: list(_numbers(fields, key, nodes, _WHOLE, lambda text: -leaves <= int(text) < nodes))
            for key in ("left_child", "right_child")
        }
        _refuse_no_tree([[int(text) for text in side] for side in children.values()], leaves)
        kept |= children
    kept["leaf_value"] = list(_numbers(fields, "leaf_value", leaves, _NUMBER, finite))
    kept |= {"is_linear": ["0"], "shrinkage": ["1"]}  # leaves are as they count already
    return "\n".join(f"{key}={' '.join(values)}" for key, values in kept.items())


def _refuse_no_tree(sides: list[list[int]], leaves: int) -> None:
    """Each node but the root and each leaf hangs from one node, which comes before it: no way leads back."""
    for side in sides:
        for node, child in enumerate(side):
            if 0 <= child <= node:
                raise ValueError(f"node {node} leads back to node {child}")
    if sorted(sides[0] + sides[1]) != [*range(-leaves, 0), *range(1, leaves - 1)]:
        raise ValueError("a node or a leaf hangs from none, or from two")
