"""What every method shares: what it is fitted on, its predictions, and its form as JSON.

A method is a scikit-learn estimator over the predictions of several members, ``P`` of shape
(rows, members, classes); a calibrator is one over a single prediction (rows, classes). Constructor arguments
are dataclass fields; what ``fit`` learns ends in ``_``. ``fit`` and ``predict_proba`` take whatever
:mod:`ensemble.methods.checked` reads; ``fit_on`` and ``predict_on`` take what is prepared already.
A fitted method goes to JSON and back to the same numbers, so nothing is ever pickled.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from data.frames import Frame
from ensemble.methods.checked import as_members, as_probabilities, as_sample_weight, as_targets_of
from ensemble.solvers.folds import inner_folds
from ensemble.solvers.numbers import as_targets, as_weights, cross_entropy

Swap = tuple[int, ...] | None
Known = dict[Hashable, np.ndarray]
"""What has been predicted of the same rows: by the ``id`` of a method, or by trees as text."""


class Estimator(ClassifierMixin, BaseEstimator, ABC):
    """What has constructor parameters and fitted attributes, and goes to JSON and back.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        The labels that ``predict`` returns, in the order of the columns; set by ``fit``.
    """

    fitted: ClassVar[tuple[str, ...]] = ()
    """Names of the fitted attributes that prediction needs."""
    _kinds: ClassVar[dict[str, type[Estimator]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Estimator._kinds[cls.__name__] = cls

    @abstractmethod
    def predict_proba(self, P: Any) -> np.ndarray:
        """Return probabilities of shape (n, K)."""

    def predict(self, P: Any, X: np.ndarray | None = None) -> np.ndarray:
        """Return the most probable label of each row, shape (n,), as ``y`` named them."""
        probs = self.predict_proba(P, **({} if X is None else {"X": X}))
        return np.asarray(getattr(self, "classes_", np.arange(probs.shape[1])))[probs.argmax(axis=1)]

    def score(
        self, P: Any, y: Any, sample_weight: np.ndarray | None = None, X: np.ndarray | None = None
    ) -> float:
        """Return minus the mean log-loss in nats: greater is better, as scikit-learn's searches expect.

        Accuracy would not do: one temperature never changes it.
        """
        probs = self.predict_proba(P, **({} if X is None else {"X": X}))
        names = getattr(self, "classes_", None)
        targets, _ = as_targets_of(y, len(probs), probs.shape[1], names)
        weights = as_weights(as_sample_weight(sample_weight, len(probs)), len(probs))
        return -float(weights @ cross_entropy(probs, targets))

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted estimator as JSON values."""
        params = {field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)}
        state = {name: _encode(getattr(self, name)) for name in self.fitted}
        return {"kind": type(self).__name__, "params": params, "fitted": state}


def from_dict(state: dict[str, Any]) -> Any:
    """Rebuild a fitted estimator from what its ``to_dict`` returned.

    Raises
    ------
    ValueError
        The state is not that of a known kind.
    """
    kinds = Estimator._kinds
    if state["kind"] not in kinds:
        raise ValueError(f"{state['kind']!r} is no kind of method; known are {', '.join(sorted(kinds))}")
    kind = kinds[state["kind"]]
    found = kind(**{name: _decode(value, False) for name, value in state["params"].items()})
    for name, value in state["fitted"].items():
        setattr(found, name, _decode(value, True))
    return found


def _encode(value: Any) -> Any:
    if isinstance(value, Estimator):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any, arrays: bool) -> Any:
    """The reverse of :func:`_encode`: lists of numbers become arrays, those of parameters tuples."""
    if isinstance(value, dict) and "kind" in value:
        return from_dict(value)
    if isinstance(value, dict):
        return {name: _decode(item, arrays) for name, item in value.items()}
    if not isinstance(value, list):
        return value
    if not arrays:
        return tuple(value)
    if value and isinstance(value[0], (int, float, list)):
        return np.asarray(value, dtype=np.float64)
    return [_decode(item, arrays) for item in value]


@dataclass(frozen=True)
class Training:
    """What a method is fitted on.

    Attributes
    ----------
    P : ndarray of shape (n, members, K)
        Probabilities.
    targets : ndarray of shape (n, K)
        A distribution a row.
    sample_weight : ndarray of shape (n,), optional
        As they were given.
    groups : ndarray of shape (n,), optional
    X : ndarray of shape (n, d), optional
        Features of the rows themselves, for the methods that can use them.
    """

    P: np.ndarray
    targets: np.ndarray
    sample_weight: np.ndarray | None = None
    groups: np.ndarray | None = None
    X: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        P: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        X: np.ndarray | None = None,
    ) -> Training:
        """Prepare what :meth:`Blender.fit` takes."""
        return cls(P, as_targets(y, P.shape[2]), sample_weight, groups, X)

    @cached_property
    def weights(self) -> np.ndarray:
        """Row weights that sum to 1, shape (n,)."""
        return as_weights(self.sample_weight, len(self.P))

    def folds(self, n_folds: int, seed: int) -> np.ndarray:
        """Inner folds (n,); see :func:`ensemble.solvers.folds.inner_folds`."""
        return inner_folds(self.targets, self.groups, n_folds, seed)


class Calibrator(Estimator):
    """A map of one prediction's probabilities (n, K), fitted on what happened."""

    def fit(
        self,
        probs: np.ndarray | Frame,
        y: Any,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Fit on probabilities (n, K).

        Parameters
        ----------
        probs : ndarray of shape (n, K) or data frame
            Each row sums to 1; a frame has a column a class.
        y : array of shape (n,) or (n, K)
            Class indices, labels (of a frame its column names, else the K that occur, in sorted order, as
            the columns of scikit-learn's ``predict_proba`` are), or a target distribution a row.
        sample_weight : ndarray of shape (n,), optional
        groups : ndarray of shape (n,), optional
            Rows of one group are never parted by cross-validation inside the calibrator.

        Raises
        ------
        ValueError
            Rows that are no distributions, or labels that are none of the classes.
        """
        values, names = as_probabilities(probs)
        targets, self.classes_ = as_targets_of(y, len(values), values.shape[1], names)
        self.n_features_in_ = values.shape[1]
        return self.fit_on(values, targets, as_sample_weight(sample_weight, len(values)), groups)

    @abstractmethod
    def fit_on(
        self,
        probs: np.ndarray,
        targets: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
        """Fit on probabilities (n, K) and target distributions (n, K); see :meth:`fit`."""

    @abstractmethod
    def predict_on(self, probs: np.ndarray) -> np.ndarray:
        """Return the calibrated probabilities (n, K)."""

    def predict_proba(self, probs: np.ndarray | Frame) -> np.ndarray:
        """Return the calibrated probabilities (n, K), of an array or a data frame."""
        check_is_fitted(self)
        values, _ = as_probabilities(probs, getattr(self, "classes_", None))
        wanted = getattr(self, "n_features_in_", values.shape[1])
        if values.shape[1] != wanted:
            raise ValueError(
                f"X has {values.shape[1]} features, but {type(self).__name__} is expecting {wanted} features "
                "as input: a column a class"
            )
        return self.predict_on(values)


class Blender(Estimator):
    """A method that turns members' predictions (n, members, K) into one prediction (n, K).

    Attributes
    ----------
    names_ : tuple of str or None
        Members by name, where :meth:`fit` was given names.
    oof_ : ndarray of shape (n, K)
        Only on methods flexible enough to fit noise: predictions of the training rows by models that
        did not see them. Whatever is fitted on top of such a method is fitted on these.
    """

    def fit(
        self,
        P: Any,
        y: Any,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        X: np.ndarray | None = None,
    ) -> Self:
        """Fit on members' predictions.

        Parameters
        ----------
        P : ndarray of shape (n, members, K), or a list or mapping of them
            Probabilities: one array, a list of a (n, K) array or data frame a member, or a mapping of a
            member's name to these. A frame has a column a class, and ids of rows where it has such a column.
        y : array of shape (n,) or (n, K)
            Class indices, labels (of frames their column names, else the K that occur, in sorted order, as
            the columns of scikit-learn's ``predict_proba`` are), or a target distribution a row.
        sample_weight : ndarray of shape (n,), optional
        groups : ndarray of shape (n,), optional
            Rows of one group are never parted by cross-validation inside the method.
        X : ndarray of shape (n, d), optional
            Features of the rows themselves; a method that cannot use them leaves them alone.

        Raises
        ------
        ValueError
            Rows that are no distributions, members of other rows, labels that are none of the classes.
        """
        values, names, self.names_ = as_members(P)
        targets, self.classes_ = as_targets_of(y, len(values), values.shape[2], names)
        weights = as_sample_weight(sample_weight, len(values))
        return self.fit_on(Training(values, targets, weights, groups, X))

    @abstractmethod
    def fit_on(self, data: Training) -> Self:
        """Fit on rows already prepared; see :meth:`fit`."""

    @property
    def needs_rows(self) -> bool:
        """Whether prediction also needs the rows' own features ``X``, as the second argument."""
        return False

    def predict_proba(self, P: Any, X: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities (n, K).

        Parameters
        ----------
        P
            As in :meth:`fit`; members of a mapping are matched by name.
        X : ndarray of shape (n, d), optional
            Features of the rows themselves, where the method :attr:`needs_rows`.
        """
        values, _, _ = as_members(P, getattr(self, "classes_", None), getattr(self, "names_", None))
        return self.predict_known(values, X)

    def predict_known(
        self, P: np.ndarray, X: np.ndarray | None = None, known: Known | None = None
    ) -> np.ndarray:
        """Return probabilities (n, K), from the rows' own features (n, d) too where the method needs them.

        Methods made of others share what these predict of the same rows where they are given the same
        ``known``, a dictionary that is empty at first.
        """
        known = {} if known is None else known
        if id(self) not in known:
            known[id(self)] = self._predict(P, X, known)
        return known[id(self)]

    def _predict(self, P: np.ndarray, X: np.ndarray | None, known: Known) -> np.ndarray:
        """:meth:`predict_known` itself; methods made of others override it and take theirs from ``known``."""
        return self.predict_on(P, X) if self.needs_rows else self.predict_on(P)  # type: ignore[call-arg]

    def predict_on(self, P: np.ndarray) -> np.ndarray:
        """Return probabilities of shape (n, K) of members' predictions already prepared."""
        return self._predict(P, None, {})

    def crossfitted(self, P: np.ndarray) -> np.ndarray:
        """Predictions of the training rows ``P`` that a second fit may be based on, shape (n, K)."""
        oof = getattr(self, "oof_", None)
        return self.predict_on(P) if oof is None else oof

    def parts(self) -> list[Blender]:
        """What of this method may be weighted by itself, each with its own ``oof_``; after :meth:`fit`."""
        return [self]
