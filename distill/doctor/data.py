"""Checks of rows, folds and stores: leaks, balance, order symmetry, soft labels that are too good."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from data.arena import bayes_log_loss, known_truth
from data.errors import UserError, listing
from data.files import read_parquet
from data.folds import group_prompts
from data.ids import places
from data.softlabels import MANIFEST
from data.softmax import softmax
from distill.config import CONFIG
from distill.doctor.finding import Finding, check, failed, passed, warned
from distill.doctor.subject import Subject
from distill.teaching.trust import check_manifest, check_settings, check_weights
from ensemble.sets.pool import fit_temperature
from ensemble.solvers.numbers import cross_entropy

RARE = 0.05
SHIFT_WARN, SHIFT_FAIL = 0.1, 0.5
SHARPEN_WARN, SHARPEN_FAIL = 0.8, 0.6
Z = 4.0
"""Standard errors beyond which a difference is taken for real: many checks run, on many subjects."""


@check("data", "row_table")
def ids_are_unique(subject: Subject) -> Finding:
    """Every row id appears once.

    Source: a duplicate id joins one row's soft labels to another's text.
    """
    ids = subject.row_table.column("row_id").to_pylist()
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if not repeated:
        return passed(f"{len(ids)} ids")
    return failed(
        f"{len(repeated)} ids appear more than once: {listing(map(str, repeated), 3)}",
        "rows are joined to other rows' labels",
        "prepare the data again from a source with unique ids",
    )


@check("data", "row_table", "fold_table")
def prompts_stay_in_one_fold(subject: Subject) -> Finding | None:
    """No prompt, letter case and white space aside, stands in two folds.

    Source: AutoGluon #4104 and #5533: group leaks in the best tool of all.
    """
    ids = subject.row_table.column("row_id").to_pylist()
    groups = group_prompts([turns or [] for turns in subject.row_table.column("prompt").to_pylist()])
    fold = subject.fold_table.column("fold").to_pylist()
    folds: dict[str, set[int]] = defaultdict(set)
    for at, group in zip(places(ids, subject.fold_table.column("row_id").to_pylist()), groups, strict=True):
        if at >= 0:
            folds[group].add(fold[at])
    split = {group for group, where in folds.items() if len(where) > 1}
    if not split:
        return passed(f"{len(folds)} prompts, none in two folds")
    rows = sum(group in split for group in groups)
    return failed(
        f"{len(split)} prompts stand in two folds or more ({rows} of {len(ids)} rows)",
        "the out-of-fold loss is too good, and so is every choice made by it",
        "deal folds by prompt: python -m data.prepare --source FILE --out NEW",
    )


@check("data", "rows")
def labels_are_balanced(subject: Subject) -> Finding | None:
    """No class is missing or rare, and A does not win more than B by more than chance and position.

    Source: LMSYS' shares are .35/.35/.30; a lopsided table is a reading mistake more often than a fact.
    """
    assert subject.rows is not None
    labels = subject.rows.labels[subject.rows.labels >= 0]
    if not len(labels) or subject.rows.classes.candidates:  # whose places mean nothing from row to row
        return None
    counts = np.bincount(labels, minlength=subject.rows.classes.n)
    shares = counts / counts.sum()
    shown = ", ".join(f"{n} {s:.2f}" for n, s in zip(subject.rows.classes.names, shares, strict=True))
    if (counts == 0).any():
        return failed(f"a class never appears: {shown}", "it is predicted as impossible", "check the source")
    if (shares < RARE).any():
        return warned(f"a class is rare: {shown}", "its loss is noise", "check how the source was read")
    swap = subject.rows.classes.swap
    if swap is not None:
        for c, other in enumerate(swap):
            z = (counts[c] - counts[other]) / np.sqrt(max(1, counts[c] + counts[other]))
            if z > Z and shares[c] - shares[other] > 0.1:
                return warned(
                    f"lopsided by {z:.0f} standard errors: {shown}",
                    "position is learnt as quality",
                    "train both orders of every pair (train.both_orders)",
                )
    return passed(shown)


@check("data", "run")
def files_as_trained(subject: Subject) -> Finding | None:
    """Manifest, trained weights and predictions are as the training wrote them, to the byte.

    Source: the hashes kept with every trained model, and the checksums of Parquet's pages.
    """
    assert subject.run is not None
    weights = sorted(subject.run.glob("*/adapter"))
    parts = [*subject.run.glob("*.parquet"), *subject.run.glob("*/*.parquet")]
    try:
        for path in weights:
            check_manifest(path, subject.manifest or {}, subject.run / MANIFEST)
            check_settings(path, subject.run / CONFIG)
            check_weights(path)
        for path in parts:
            read_parquet(path, "soft-label file")
    except UserError as mistake:
        return failed(
            str(mistake),
            "what is predicted, or taught, is not what was trained",
            "restore that file, or delete its part of the run and start the training's command again",
        )
    return passed(f"{len(weights)} trained models, {len(parts)} files of predictions")


@check("data", "store")
def store_fits_rows(subject: Subject) -> Finding | None:
    """The store was made from the rows and folds that lie where its manifest points.

    Source: rows prepared again under a finished run; joins are by id, so nothing else would notice.
    """
    assert subject.manifest is not None
    if subject.rows is None or subject.folds is None:
        return None
    for name, found in (
        ("rows_hash", subject.rows.content_hash),
        ("folds_hash", subject.folds.content_hash),
    ):
        if subject.manifest.get(name) != found:
            return failed(
                f"{name} of the manifest is not that of {subject.data_dir}",
                "soft labels of other rows",
                "point --data at the rows of the training, or train again",
            )
    return passed("rows and folds are those of the manifest")


@check("data", "store")
def order_symmetry(subject: Subject) -> Finding | None:
    """Swapping the responses moves the logits of A against B by zero on average.

    Source: position bias; averaging both orders was worth .015 to the public notebook (discussion 527596).
    """
    assert subject.store is not None
    swap = subject.store.classes.swap
    if swap is None:
        return None
    logits = subject.store.logits.astype(np.float64)
    first = next(c for c, other in enumerate(swap) if other != c)
    margin = logits[:, :, first] - logits[:, :, swap[first]]
    shift = margin[:, 0] - margin[:, 1]
    mean, error = float(shift.mean()), float(shift.std(ddof=1) / np.sqrt(len(shift)))
    cost = ""
    if subject.rows is not None:
        one, both = (_losses(subject, x)[2].mean() for x in (logits[:, 0], logits.mean(axis=1)))
        cost = f"one order alone costs {one - both:+.4f} log-loss on these rows"
    shown = f"the margin shifts by {mean:+.3f} ± {2 * error:.3f} logits"
    if abs(mean) <= SHIFT_WARN or abs(mean) < Z * error:
        return passed(f"{shown}; {cost}" if cost else shown)
    report = failed if abs(mean) > SHIFT_FAIL else warned
    return report(shown, cost or "about .015", "train both orders (train.both_orders), average both orders")


def _losses(subject: Subject, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the labelled rows the targets, the probabilities of the store's logits, and their losses."""
    assert subject.rows is not None
    assert subject.store is not None
    at = places(subject.rows.row_ids, subject.store.row_ids)
    known = (at >= 0) & subject.rows.labelled
    targets, probs = subject.rows.targets[known], softmax(logits[at[known]])
    return targets, probs, cross_entropy(probs, targets)


def _errors(values: np.ndarray) -> float:
    """How many of its standard errors a mean lies from zero."""
    return float(values.mean() / max(values.std(ddof=1) / np.sqrt(len(values)), 1e-12))


@check("data", "store", "rows")
def soft_labels_are_out_of_fold(subject: Subject) -> Finding | None:
    """The store says it is out of fold, and its soft labels are not better than such labels can be.

    A model is over-confident on rows it has not seen, or well calibrated after good training; on rows it was
    trained on it is right more often than it says, so a temperature far below one fits best. Where
    the true probabilities are known (the simulated arena), nothing beats their entropy.
    Source: the 1st place's soft labels were in-sample; a student learns the teacher's memory from them.
    """
    assert subject.rows is not None
    assert subject.store is not None
    kind = subject.store.manifest.get("label_kind")
    fix = "predict every row by the model that never saw its fold (distill.teacher_oof)"
    cost = "the student copies what the teacher memorised; every score on these rows is too good"
    if kind != "oof":
        return failed(f"label_kind is {kind}", cost, fix)
    targets, probs, losses = _losses(subject, subject.store.mean_logits)
    if not len(targets):
        return None
    if known_truth(subject.rows) is not None and (subject.rows.labels >= 0).all():
        gap = losses - bayes_log_loss(subject.rows)[1]
        if _errors(gap) < -Z:
            return failed(
                f"log-loss {losses.mean():.4f} is below the true probabilities' own, by {-gap.mean():.4f}",
                cost,
                fix,
            )
    temperature, scaled = fit_temperature(probs, targets, subject.rows.classes.candidates)
    z = _errors(losses - cross_entropy(scaled(probs), targets))
    shown = f"log-loss {losses.mean():.4f}; best temperature {temperature:.2f}"
    if temperature < SHARPEN_FAIL and z > Z:
        return failed(f"{shown}: right far more often than it says, as on rows it was trained on", cost, fix)
    if temperature < SHARPEN_WARN and z > Z:
        return warned(f"{shown}: under-confident", "in-sample labels, or an under-trained model", fix)
    return passed(shown)
