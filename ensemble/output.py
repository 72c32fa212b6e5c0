"""What a stack leaves on disk: ``stack.json``, the nested predictions, and the fitted method."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.calibrate import Calibrated
from ensemble.features import NAMES
from ensemble.problem import Problem
from ensemble.results import Result, Score, shown_weights
from ensemble.saved import save_stack

FORMAT = 1


def describe(problem: Problem, result: Result) -> dict[str, Any]:
    """What ``stack.json`` says, all but the fitted method."""
    weights_of, weights = shown_weights(result)
    method = result.fitted[result.chosen]
    return {
        "kind": "stack",
        "format": FORMAT,
        "classes": list(problem.classes.names),
        "swap": None if problem.classes.swap is None else list(problem.classes.swap),
        "members": list(problem.names),
        "chosen": result.chosen,
        "why": result.why,
        "chosen_methods": list(result.best),
        "chosen_nested_log_loss": result.score(result.chosen).loss,
        "chosen_nested_log_loss_choice_included": result.choice_included,
        "chosen_nested_log_loss_choice_included_ci95": result.choice_included_ci.as_list(),
        "weights": dict(zip(problem.names, weights.tolist(), strict=True)),
        "weights_of": weights_of,
        "row_features": list(NAMES) if method.needs_rows else [],
        "temperature": method.temperature_ if isinstance(method, Calibrated) else 1.0,
        "methods": [
            {
                "name": score.name,
                "nested_log_loss": score.loss,
                "in_sample_log_loss": score.in_sample,
                "log_loss_ci95": score.ci.as_list(),
                "difference": score.vs_mean,
                "ci95": score.vs_mean_ci.as_list(),
                "difference_to_best_single": score.vs_single,
                "ci95_vs_best_single": score.vs_single_ci.as_list(),
            }
            for score in result.methods
        ],
        "prior": _plain(result.prior),
        "bayes": _plain(result.bayes) if result.bayes else None,
        "best_single": result.best_single,
        "member_scores": [
            {**_plain(score), "source": str(source.path), "content_hash": source.content_hash}
            for score, source in zip(result.members, problem.sources, strict=True)
        ],
        "rows": {
            "n": len(problem),
            "groups": int(problem.groups.max()) + 1,
            "folds": len(np.unique(problem.fold)),
            "folds_from": problem.folds_from,
            "hashes": problem.hashes,
            "weighted": problem.weight is not None,
            "notes": [*problem.notes, *result.notes],
        },
        "bootstrap_draws": result.draws.draws,
        "repeats": result.repeats,
        "seed": result.seed,
        "versions": {name: _version(name) for name in ("distillstack", "numpy", "scipy", "lightgbm")},
    }


def _plain(score: Score) -> dict[str, Any]:
    return {
        "name": score.name,
        "log_loss": score.loss,
        "log_loss_ci95": score.ci.as_list(),
        "difference": score.vs_mean,
        "ci95": score.vs_mean_ci.as_list(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_result(out: Path, problem: Problem, result: Result) -> None:
    """Write the nested predictions, the trees and, last, ``stack.json``."""
    import pyarrow as pa

    from data.files import write_parquet

    columns: dict[str, Any] = {
        "row_id": pa.array(problem.row_ids, pa.string()),
        "fold": pa.array(problem.fold, pa.int32()),
    }
    for k, name in enumerate(problem.classes.names):
        columns[name] = pa.array(result.probs[result.chosen][:, k])
    write_parquet(out / "predictions.parquet", pa.table(columns))
    save_stack(out, describe(problem, result), result.fitted[result.chosen])
