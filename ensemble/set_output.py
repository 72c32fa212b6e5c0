"""What a stack of rows with candidates leaves on disk: ``stack.json`` and the nested predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.candidates import CANDIDATES
from data.files import sha256_files, write_parquet
from ensemble.output import PREDICTIONS, REPORT
from ensemble.records import versions
from ensemble.saved import FORMAT, save_stack
from ensemble.scoring.bootstrap import DRAWS
from ensemble.scoring.ranking import METRICS
from ensemble.sets.fitting import SetScore, SetStack, notes
from ensemble.sets.long import CANDIDATE, PROBABILITY
from ensemble.sets.pool import SetTemperature


def content_of(stack: SetStack) -> dict[str, Any]:
    """What ``stack.json`` says, all but the fitted method."""
    problem, method = stack.sets.problem, stack.fitted
    weights = getattr(method.base if isinstance(method, SetTemperature) else method, "weights_")  # noqa: B009
    return {
        "kind": "stack",
        "format": FORMAT,
        "classes": list(problem.classes.names),
        "swap": None,
        CANDIDATES: True,
        "members": list(problem.names),
        "chosen": stack.chosen,
        "verdict": stack.verdict,
        "chosen_nested_log_loss": stack.score.loss,
        "chosen_nested_log_loss_choice_included": stack.choice_included,
        "chosen_nested_log_loss_choice_included_ci95": stack.choice_included_ci.as_list(),
        "weights": dict(zip(problem.names, np.asarray(weights).tolist(), strict=True)),
        "temperature": method.temperature_ if isinstance(method, SetTemperature) else 1.0,
        "even_log_loss": stack.even,
        "methods": [_plain(score) for score in stack.methods],
        "member_scores": [
            {**_plain(score), "source": str(source.path), "content_hash": source.content_hash}
            for score, source in zip(stack.members, problem.sources, strict=True)
        ],
        "rows": problem.record(notes(stack)[len(problem.notes) :]),
        "bootstrap_draws": DRAWS,
        "repeats": stack.repeats,
        "seed": stack.seed,
        "versions": versions("distillstack", "numpy", "scipy"),
    }


def _plain(score: SetScore) -> dict[str, Any]:
    ranked = zip(METRICS, score.metrics, score.metrics_ci, strict=True)
    return {
        "name": score.name,
        "nested_log_loss": score.loss,
        "log_loss_ci95": score.ci.as_list(),
        "difference": score.vs_mean,
        "ci95": score.vs_mean_ci.as_list(),
        "metrics": {name: {"mean": value, "ci95": ci.as_list()} for name, value, ci in ranked},
    }


def write_stack(out: Path, stack: SetStack) -> None:
    """Write the nested predictions, a line a row and candidate, and last ``stack.json``, which binds them."""
    import pyarrow as pa

    problem, candidates = stack.sets.problem, stack.sets.candidates
    order = np.arange(len(problem)) if problem.given is None else problem.given
    own = [candidates[i] for i in order]
    sizes = np.array([len(found) for found in own])
    at = np.repeat(order, sizes)
    flat = stack.probs[order][np.arange(stack.probs.shape[1]) < sizes[:, None]]
    table = pa.table(
        {
            "row_id": pa.array([problem.row_ids[i] for i in at], pa.string()),
            "fold": pa.array(problem.fold[at], pa.int32()),
            CANDIDATE: pa.array([name for found in own for name in found], pa.string()),
            PROBABILITY: pa.array(flat),
        }
    )
    (out / REPORT).unlink(missing_ok=True)  # of another stack that stood here
    write_parquet(out / PREDICTIONS, table)
    files = {PREDICTIONS: sha256_files([out / PREDICTIONS])}
    save_stack(out, {**content_of(stack), "files": files}, stack.fitted)
