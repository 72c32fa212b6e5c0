"""A trained run in memory: predict new rows with what was trained, as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.encoding.encode import Encoder, Truncation, pad_token_id
from data.encoding.template import recorded_template
from data.errors import UserError, listing
from data.files import sha256_text
from data.frames import Frame, as_file
from data.schema import Rows
from data.softmax import softmax
from data.sources.read import SourceOptions, read_source
from distill.config import QUANTISED
from distill.model.backbone import load_trained
from distill.model.classifier import Classifier
from distill.model.held import DTYPES, compute_dtype, held_in
from distill.model.served import serve
from distill.packing.examples import Examples
from distill.runs.saved import Access, SavedModel, checked_tokenizer, identity, read_saved
from distill.teaching.trust import check_weights
from distill.training.trainer import predict_logits


def predict_rows(saved: SavedModel, rows: Rows, waiting: Path | None = None) -> np.ndarray:
    """Predict rows in all their orders; fold models are averaged in logits.

    Adapters are served one after another from one loaded base.

    Parameters
    ----------
    waiting : Path, optional
        Directory in which what is predicted is kept until the caller deletes it: a call that was killed goes
        on from there, if model and rows are the same.

    Returns
    -------
    ndarray of shape (n, orders, K)
        Logits in each row's own class order.

    Raises
    ------
    UserError
        The rows' classes, the backbone or the tokenizer are not those of the training.
    """
    return Loaded(saved).predict(rows, saved.name, waiting)


class Loaded:
    """A finished run in memory, for prediction after prediction.

    Parameters
    ----------
    saved : SavedModel

    Raises
    ------
    UserError
        The backbone or the tokenizer are not those of the training.
    """

    def __init__(self, saved: SavedModel) -> None:
        self.saved = saved
        self.tokenizer = checked_tokenizer(saved)
        self._classifier: Classifier | None = None
        self._weights: Path | None = None

    @property
    def classes_(self) -> tuple[str, ...]:
        """Class names, in the order of the columns."""
        return self.saved.classes.names

    def predict_proba(
        self, rows: Rows | Frame | str | Path, columns: Mapping[str, str] | None = None
    ) -> np.ndarray:
        """Return probabilities (n, K) as ``distill.predict`` writes them: orders averaged, tempered.

        Parameters
        ----------
        rows : Rows, data frame or path
            Any source that :func:`data.read_source` reads.
        columns : mapping of str to str, optional
            Field to column, as in :class:`data.SourceOptions`.

        Raises
        ------
        UserError
            The rows cannot be read or are of other classes; a prediction is not finite.
        """
        if not isinstance(rows, Rows):
            with as_file(rows) as source:
                rows = rows_for(self.saved, source, columns)
        return probabilities(self.saved, rows, self.predict(rows, self.saved.name))

    def predict(self, rows: Rows, what: str, waiting: Path | None = None) -> np.ndarray:
        """Predict rows in all their orders, averaged over the run's models; see :func:`predict_rows`."""
        saved, train = self.saved, self.saved.model.train
        examples = examples_of(saved, rows, self.tokenizer)
        everything, made_by = np.arange(len(rows)), identity(saved)
        total = np.zeros((len(rows), examples.encoded.orders, rows.classes.n))
        for number, weights in enumerate(saved.weights, start=1):
            name = f"{what} predicts ({number}/{len(saved.weights)})"
            place = None
            if waiting is not None:
                place = waiting / sha256_text(made_by, str(number), rows.content_hash)[:16]
            total += predict_logits(
                self._with(weights), examples, everything, train.predict_rows, name, train.pack_tokens, place
            )
        return total / len(saved.weights)

    def ready(self) -> Loaded:
        """Load what would be loaded at the first prediction."""
        self._with(self.saved.weights[0])
        return self

    def _with(self, weights: Path) -> Classifier:
        """The classifier with these weights: of a base loaded once the adapter is changed in place."""
        model = self.saved.model
        if self._weights != weights and not self.saved.exported:
            check_weights(weights, self.saved.access.accept_changed)
        if self._classifier is None or not (model.lora.enabled or self._weights == weights):
            config, kind = self.saved.served, ""
            if config.precision in QUANTISED and model.backbone.precision not in QUANTISED:
                # Made of the merged weights, which are loaded in what everything else is computed in.
                kind, dtype = held_in(config), compute_dtype(config)
                config = replace(config, precision=next(name for name, d in DTYPES.items() if d == dtype))
            n, alone = self.saved.classes.outputs, len(self.saved.weights) == 1
            loaded = load_trained(config, self.saved.backbone, weights, model.lora.enabled, n)
            self._classifier = serve(loaded, config, kind) if alone else loaded
        elif self._weights != weights:
            self._classifier.load(weights)
        self._weights = weights
        return self._classifier


def probabilities(saved: SavedModel, rows: Rows, logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, K) of logits (n, orders, K): orders averaged, at the model's temperature.

    Raises
    ------
    UserError
        One is not finite; the first such row is named.
    """
    probs = softmax(logits.mean(axis=1) / saved.temperature)
    check_finite(saved, rows, probs)
    return probs


def check_finite(saved: SavedModel, rows: Rows, probs: np.ndarray) -> None:
    """Refuse predictions that are not numbers, naming the first row."""
    bad = np.flatnonzero(~np.isfinite(probs).all(axis=1))
    if bad.size:
        raise UserError(
            f"{saved.path}: the model's prediction of row {rows.row_ids[bad[0]]} is not finite; its weights "
            "have gone out of range, train it again at a lower learning rate"
        )


def load_run(
    path: str | Path,
    *,
    backbone: str | None = None,
    accept_changed: bool = False,
    precision: str = "",
    compute: str = "",
) -> Loaded:
    """Load a finished run, or a model that ``distill.export`` made of one, to predict with.

    Parameters
    ----------
    path : path
    backbone, accept_changed, precision, compute
        As in :class:`Access`.

    Raises
    ------
    UserError
        As :func:`read_saved`; the backbone or the tokenizer are not those of the training.
    """
    return Loaded(read_saved(Path(path), Access(backbone, accept_changed, precision, compute)))


def rows_for(saved: SavedModel, source: str, columns: Mapping[str, str] | None = None) -> Rows:
    """Read rows to predict: a plain table that does not name its classes has those of the model.

    Parameters
    ----------
    saved : SavedModel
    source : str
    columns : mapping of str to str, optional
        Field to column, as in :class:`data.sources.read.SourceOptions`.

    Raises
    ------
    UserError
        As :func:`data.sources.read.read_source`.
    """
    plain = mistake = None
    try:
        sets = saved.manifest.get("sets") or {}
        plain, _ = read_source(source, SourceOptions(columns=columns or {}, sets=sets))
        if saved.classes.suit(plain.classes):
            return plain
    except UserError as error:
        mistake = error
    try:
        own = SourceOptions(classes=saved.classes.names, swap=saved.classes.swap, columns=columns or {})
        return read_source(source, own)[0]
    except UserError as error:
        if plain is not None:
            return plain  # rows of other classes, which the model refuses by name
        # What naming the classes would mend is told as it stands now that they are named.
        if mistake is None or "--classes" in str(mistake):
            raise
        raise mistake from error


def examples_of(saved: SavedModel, rows: Rows, tokenizer: Any = None) -> Examples:
    """Encode rows as the model was trained to read them; errors as in :func:`predict_rows`."""
    if saved.classes.candidates != rows.classes.candidates:
        has, lacks = ("model", "rows") if saved.classes.candidates else ("rows", "model")
        raise UserError(
            f"{saved.path}: the {has}'s classes are the places of candidates of each row's own, and the "
            f"{lacks}'s are not; a table of such rows has a column candidates, a list of texts a row"
        )
    if not saved.classes.suit(rows.classes):
        raise UserError(
            f"{saved.path}: was trained on classes {listing(saved.classes.names, 12)}; "
            f"the rows have {listing(rows.classes.names, 12)}"
        )
    tokenizer = tokenizer or checked_tokenizer(saved)
    template = recorded_template(saved.manifest["template"], saved.path)
    encoder = Encoder(tokenizer, template, Truncation(**asdict(saved.model.encode)))
    return Examples(
        encoder.encode(rows),
        rows.targets,
        rows.classes.permutation,
        pad_token_id(tokenizer),
        shared_prefix=saved.model.train.shared_prefix,
    )
