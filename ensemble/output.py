"""What a stack leaves on disk: ``stack.json``, the nested predictions, and the fitted method."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.files import sha256_files
from ensemble.methods.calibrate import Calibrated
from ensemble.methods.catalogue import SIMPLEST
from ensemble.reading.features import NAMES
from ensemble.reading.maps import fit_map
from ensemble.reading.problem import Problem
from ensemble.records import BOUND, STACK, begins_with, held_for, versions
from ensemble.saved import FORMAT, save_stack
from ensemble.scoring.draws import drawn_pools
from ensemble.scoring.results import Result, Score, shown_weights
from ensemble.scoring.verdict import verdict

PREDICTIONS, REPORT = BOUND


def _is_predictions(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_schema(path).names[:2] == ["row_id", "fold"])
    except (OSError, pa.ArrowException):
        return False


_FILES = {
    PREDICTIONS: _is_predictions,
    REPORT: begins_with(b"<title>Stack report</title>"),
    STACK: begins_with(b'"kind": "stack"'),
}
_HALF_WRITTEN = re.compile(
    r"\.(stack\.json|report\.html|predictions\.parquet|lightgbm-[0-9a-f]{16}\.txt)\.\d+\.tmp"
)


@contextmanager
def hold(out: Path, inputs: Iterable[Path]) -> Iterator[None]:
    """Hold a stack's directory while it is made; see :func:`ensemble.records.held_for`."""
    with held_for("stack", out, inputs, _FILES):
        for left in out.glob(".*.tmp"):  # of a killed command
            if _HALF_WRITTEN.fullmatch(left.name):
                left.unlink(missing_ok=True)
        yield


def stack_content(problem: Problem, result: Result) -> dict[str, Any]:
    """What ``stack.json`` says, all but the fitted method."""
    weights_of, weights = shown_weights(result)
    method = result.fitted[result.chosen]
    draws, drawn_from = drawn_pools(problem, result.fitted[SIMPLEST], result.seed)
    return {
        "kind": "stack",
        "format": FORMAT,
        "classes": list(problem.classes.names),
        "swap": None if problem.classes.swap is None else list(problem.classes.swap),
        "members": list(problem.names),
        "chosen": result.chosen,
        "why": result.why,
        "verdict": verdict(problem, result).sentence,
        "chosen_methods": list(result.best),
        "chosen_shares": list(result.best.values()),
        "chosen_nested_log_loss": result.score(result.chosen).loss,
        "chosen_nested_log_loss_choice_included": result.choice_included,
        "chosen_nested_log_loss_choice_included_ci95": result.choice_included_ci.as_list(),
        "maps": {
            name: fit_map(judge, problem.y, problem.weight).to_dict()
            for name, judge in problem.judges.items()
            if name in problem.names
        },
        "draws": draws,
        "drawn_from": None if drawn_from is None else drawn_from.to_dict(),
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
        "rows": problem.record(result.notes),
        "bootstrap_draws": result.draws.draws,
        "repeats": result.repeats,
        "seed": result.seed,
        "versions": versions("distillstack", "numpy", "scipy", "lightgbm"),
    }


def _plain(score: Score) -> dict[str, Any]:
    return {
        "name": score.name,
        "log_loss": score.loss,
        "log_loss_ci95": score.ci.as_list(),
        "difference": score.vs_mean,
        "ci95": score.vs_mean_ci.as_list(),
    }


def write_result(out: Path, problem: Problem, result: Result) -> None:
    """Write the nested predictions, rows as in the file given first, the trees and, last, ``stack.json``.

    It binds what is beside it.
    """
    import pyarrow as pa

    from data.files import write_parquet

    columns: dict[str, Any] = {
        "row_id": pa.array(problem.row_ids, pa.string()),
        "fold": pa.array(problem.fold, pa.int32()),
    }
    for k, name in enumerate(problem.classes.names):
        columns[name] = pa.array(result.probs[result.chosen][:, k])
    table = pa.table(columns)
    write_parquet(out / PREDICTIONS, table if problem.given is None else table.take(problem.given))
    files = {name: sha256_files([out / name]) for name in BOUND if (out / name).exists()}
    save_stack(out, {**stack_content(problem, result), "files": files}, result.fitted[result.chosen])
