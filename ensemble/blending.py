"""Blending in one call: members and what happened in, a fitted stack with its honest score out.

:func:`blend` is what ``ensemble.stack`` does, for arrays and data frames instead of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import UserError, listing
from data.ids import align
from ensemble.lint.suspects import leave_out_suspects
from ensemble.methods.base import Blender
from ensemble.methods.catalogue import METHODS
from ensemble.output import REPORT, hold, stack_content, write_result
from ensemble.reading.fresh import joined
from ensemble.reading.given import members_given
from ensemble.reading.in_memory import problem_given
from ensemble.reading.problem import Problem, declare_swap
from ensemble.report.page import write_report
from ensemble.report.summary import summary
from ensemble.saved import apply_stack, classes_of, load_stack, maps_of
from ensemble.scoring.bootstrap import Interval
from ensemble.scoring.results import Result, evaluate
from ensemble.scoring.verdict import ASKED, instead, settle

if TYPE_CHECKING:
    from data.schema import Rows


def blend(
    members: Any,
    y: Any,
    *,
    groups: Any = None,
    folds: Any = None,
    sample_weight: Any = None,
    rows: Rows | None = None,
    classes: Sequence[str] | None = None,
    swap: Sequence[str] = (),
    trust: Sequence[str] = (),
    method: str | None = None,
    repeats: int = 1,
    seed: int = 0,
) -> Stack:
    """Blend out-of-fold predictions, and score the blend on folds that it was not fitted on.

    Parameters
    ----------
    members : ndarray of shape (n, members, K), or a list or mapping of members
        A member is an array (n, K) of probabilities, a data frame with one column a class, or the path of a
        soft-label store or prediction set. Frames and files are matched by their ids, everything else by
        position. Each must have been predicted by a model that did not see the row's label.
    y : array of shape (n,) or (n, K), Series, data frame or path
        What happened: class names, class indices (empty where unknown), or target distributions.
    groups : array of shape (n,), optional
        Rows that share a group, such as a prompt, share a fold; each row is its own by default.
    folds : array of shape (n,), optional
        The fold of each row; dealt here by default, stratified by label.
    sample_weight : array of shape (n,), optional
        What each row counts for.
    rows : data.Rows, optional
        The row table, whose lengths and turns some methods look at; prediction then needs the new rows, too,
        where such a method is chosen.
    classes : sequence of str, optional
        Names of the columns of arrays, in order. By default those of the first frame, else the K labels that
        occur, sorted, where these are texts, else numbers.
    swap : sequence of str, optional
        ``A=B`` for classes that change places when the two sides of a row do.
    trust : sequence of str, optional
        Members to keep that look as if they had seen the labels.
    method : str, optional
        Take this method instead of the chosen one; :data:`ensemble.methods.catalogue.METHODS` are known.
    repeats : int
        Deals of the folds that scores are means over.
    seed : int
        Of folds, trees and bootstrap.

    Returns
    -------
    Stack

    Raises
    ------
    UserError
        What cannot be blended: no distributions, rows that do not match, unknown labels, a split group.
    """
    problem, names, _ = problem_given(members, y, groups, folds, sample_weight, rows, classes, seed)
    if swap:
        problem = declare_swap(problem, swap)
    stack = fit_stack(leave_out_suspects(problem, trust), method, repeats, seed)
    return replace(stack, given=names)


def fit_stack(problem: Problem, method: str | None = None, repeats: int = 1, seed: int = 0) -> Stack:
    """Try every method, score each by nested cross-fitting, and keep the chosen one or the one asked for.

    Parameters
    ----------
    problem : Problem
    method : str, optional
        Take this method instead of the chosen one.
    repeats : int
        Deals of the folds that scores are means over.
    seed : int
        Of inner folds, trees and bootstrap.

    Raises
    ------
    UserError
        ``method`` was not tried.
    """
    result = evaluate(problem, seed=seed, repeats=repeats)
    if method is None:
        result = settle(result)
    elif method in result.fitted:
        result = instead(result, method, ASKED)
    elif method in METHODS:
        raise UserError(f"--method {method}: was not tried here; {'; '.join(result.notes)}")
    else:
        raise UserError(f"--method {method}: is no method; there are {', '.join(METHODS)}")
    return Stack(stack_content(problem, result), result.fitted[result.chosen], problem, result)


@dataclass(frozen=True, repr=False)
class Stack:
    """A fitted blend, with what is known of it.

    Attributes
    ----------
    content : dict
        What ``stack.json`` says.
    method : Blender
        What predicts.
    problem, result : Problem, Result or None
        What it was fitted on and how every method did; not of a stack read from disk.
    given : tuple of str
        Members in the order in which :func:`blend` was given them, those left out too.
    """

    content: dict[str, Any]
    method: Blender
    problem: Problem | None = None
    result: Result | None = None
    given: tuple[str, ...] = ()

    @property
    def classes_(self) -> tuple[str, ...]:
        """Class names, in the order of the columns."""
        return tuple(self.content["classes"])

    @property
    def members_(self) -> tuple[str, ...]:
        """Members that it blends, in order."""
        return tuple(self.content["members"])

    @property
    def score_(self) -> float:
        """The honest log-loss in nats: of rows not fitted on, the choice of the method cross-fitted too."""
        return float(self.content["chosen_nested_log_loss_choice_included"])

    @property
    def interval_(self) -> Interval:
        """The 95 % interval of :attr:`score_`, by a bootstrap over groups."""
        return Interval(*self.content["chosen_nested_log_loss_choice_included_ci95"])

    @property
    def verdict(self) -> str:
        """What was gained on the mean, and which simple method would do, in a sentence."""
        return str(self.content["verdict"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: members left out, labels as they were read."""
        return tuple(self.content["rows"]["notes"])

    def predict_proba(self, members: Any, rows: Rows | None = None) -> np.ndarray:
        """Blend fresh predictions; returns probabilities (n, K) of the rows of the first member.

        Parameters
        ----------
        members
            As :func:`blend` takes them; of a mapping matched by name, else by position.
        rows : data.Rows, optional
            The rows themselves, where the chosen method looks at them.

        Raises
        ------
        UserError
            A member is missing or unknown, the sets predict different rows, or rows are needed.
        """
        fresh = members_given(members, classes_of(self.content), self.given or self.members_)
        named = {member.name: [member] for member in fresh}
        found = joined(named, self.members_, "the stack", self.given)
        ids, P = found.row_ids, found.seen(maps_of(Path("the stack"), self.content))
        if rows is not None:
            rows = rows.take(align(ids, rows.row_ids, "rows"))
        return apply_stack(Path("the stack"), self.method, P, rows)

    def predict(self, members: Any, rows: Rows | None = None) -> np.ndarray:
        """Return the name of the most probable class of each row, shape (n,); see :meth:`predict_proba`."""
        return np.asarray(self.classes_)[self.predict_proba(members, rows).argmax(axis=1)]

    def report(self, path: str | Path) -> None:
        """Write the report: one page of HTML that needs no network."""
        problem, result = self._fitted()
        write_report(Path(path), problem, result)

    def save(self, out: str | Path) -> None:
        """Write what ``ensemble.stack`` leaves: ``stack.json``, trees, nested predictions and the report.

        Raises
        ------
        UserError
            The directory cannot be written, or holds files of another origin.
        """
        self._fitted()
        with hold(Path(out), []):
            self.write(Path(out))

    def write(self, out: Path) -> None:
        """:meth:`save` into a directory that is held already."""
        problem, result = self._fitted()
        write_report(out / REPORT, problem, result)
        write_result(out, problem, result)

    def _fitted(self) -> tuple[Problem, Result]:
        if self.problem is None or self.result is None:
            raise UserError("a stack read from disk has its report beside it, and is saved already")
        return self.problem, self.result

    def __repr__(self) -> str:
        """Members, the chosen method, its honest score, and the verdict."""
        if self.problem is None or self.result is None:
            return f"Stack of {listing(self.members_)} by {self.content['chosen']}: {self.score_:.4f}"
        return summary(self.problem, self.result)


def read_stack(path: str | Path) -> Stack:
    """Read a stack that ``ensemble.stack`` or :meth:`Stack.save` wrote.

    Parameters
    ----------
    path : path
        Its directory.

    Raises
    ------
    UserError
        No stack, or one that was damaged or changed.
    """
    return Stack(*load_stack(Path(path)))
