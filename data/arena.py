"""The simulated arena: preference rows whose true class probabilities are known.

It is the embedded default of every command, and the yardstick of the tests: because each row stores the
probabilities its label was drawn from, the log-loss that no model can beat in expectation is known, and
so is how far a model is from it. Labels come from a model of paired comparison with ties; texts come
from :mod:`data.arena_text` and show everything that the label depends on, except chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.arena_text import Dice, Quality, Request, write_request, write_response
from data.classes import PREFERENCE
from data.errors import UserError
from data.schema import Rows, make_rows

SOURCE = "simulated arena"
CONTESTANTS = {
    "aster-1": -1.6,
    "birch-2": -1.0,
    "cedar-3": -0.5,
    "dune-4": 0.0,
    "ember-5": 0.3,
    "fjord-6": 0.7,
    "grove-7": 1.2,
    "heath-8": 1.8,
}
"""The answering models and their skill, in logits: a skilled one makes fewer of every kind of mistake."""


@dataclass(frozen=True)
class ArenaConfig:
    """How many rows to simulate and how strongly each trait of an answer sways the judges.

    Parameters
    ----------
    n_rows : int
        Number of rows, at least 1.
    seed : int
        Seed; equal configurations make equal rows.
    correct, complete, well_formed : float
        Worth of an answer that is right in substance, holds all that was asked for, and is in the form
        asked for. Worths are in logits: a difference of 1 multiplies the odds of A over B by e.
    polite, hedged, refused, strayed, broken_off, rude : float
        Worth of a trait at the surface.
    length_bias : float
        Worth of ten more words, up to 40 words.
    position_bias : float
        Advantage of whichever answer stands first.
    tie : float
        Davidson's nu: between answers of equal worth a tie is nu times as likely as a win of A.
    noise : float
        Probability that the judge picks one of the three labels blindly.
    repeat : float
        Probability that a row uses an earlier row's prompt.
    """

    n_rows: int = 1500
    seed: int = 0
    correct: float = 2.0
    complete: float = 1.5
    well_formed: float = 1.1
    polite: float = 0.5
    hedged: float = -1.0
    refused: float = -1.2
    strayed: float = -1.0
    broken_off: float = -1.0
    rude: float = -1.2
    length_bias: float = 0.25
    position_bias: float = 0.2
    tie: float = 1.7
    noise: float = 0.04
    repeat: float = 0.12

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise UserError(f"the simulated arena needs at least 1 row, not {self.n_rows}")
        if self.tie < 0 or not 0 <= self.noise <= 1 or not 0 <= self.repeat <= 1:
            raise UserError("arena strengths: tie must not be negative, noise and repeat lie between 0 and 1")


def simulate_arena(config: ArenaConfig | None = None) -> Rows:
    """Simulate preference rows with known class probabilities.

    Two contestants answer a prompt; each answer's worth s is a sum over its visible traits. The label
    follows Davidson's model (1970), which adds ties to that of Bradley and Terry (1952)::

        P(A wins) ∝ exp(s_a),   P(B wins) ∝ exp(s_b),   P(tie) ∝ nu · exp((s_a + s_b) / 2)

    where s_a holds the advantage of standing first; with probability ``noise`` the label is uniform
    instead, which is mixed into the stored probabilities.

    Parameters
    ----------
    config : ArenaConfig, optional

    Returns
    -------
    Rows
        Preference rows with three further columns: ``true_probs`` (fixed_size_list<float32>[3], in class
        order) and ``worth_a``, ``worth_b`` (float32, before the advantage of standing first).

    References
    ----------
    R. A. Bradley and M. E. Terry (1952), Rank analysis of incomplete block designs, Biometrika 39.
    R. R. Davidson (1970), On extending the Bradley-Terry model to accommodate ties in paired comparison
    experiments, Journal of the American Statistical Association 65.
    """
    import pyarrow as pa

    config = config or ArenaConfig()
    rng = np.random.default_rng(config.seed)
    dice = Dice(rng)
    names = list(CONTESTANTS)
    requests: list[Request] = []
    columns: dict[str, list] = {
        key: [] for key in ("row_id", "prompt", "response_a", "response_b", "model_a", "model_b")
    }
    worth = np.empty((config.n_rows, 2))
    for row in range(config.n_rows):
        repeats = requests and dice.chance(config.repeat)
        request = dice.pick(requests) if repeats else write_request(dice)
        requests.append(request)
        columns["row_id"].append(f"arena-{config.seed}-{row:06d}")
        columns["prompt"].append([request.prompt])
        for side, name in enumerate(dice.sample(names, 2)):
            quality = _quality(dice, request, CONTESTANTS[name])
            text = write_response(dice, request, quality)
            worth[row, side] = _worth(config, quality, len(text.split()))
            columns[("response_a", "response_b")[side]].append([text])
            columns[("model_a", "model_b")[side]].append(name)
    probs = preference_probs(config, worth)
    labels = (rng.random((config.n_rows, 1)) > np.cumsum(probs, axis=1)[:, :-1]).sum(axis=1)
    values = pa.array(probs.astype(np.float32).ravel())
    return make_rows(
        {
            **columns,
            "label": labels.tolist(),
            "true_probs": pa.FixedSizeListArray.from_arrays(values, PREFERENCE.n),
            "worth_a": pa.array(worth[:, 0], pa.float32()),
            "worth_b": pa.array(worth[:, 1], pa.float32()),
        },
        PREFERENCE,
        SOURCE,
    )


def preference_probs(config: ArenaConfig, worth: np.ndarray) -> np.ndarray:
    """Davidson's class probabilities, position bias and noise mixed in.

    Parameters
    ----------
    config : ArenaConfig
    worth : ndarray of shape (n, 2)
        Worth of the answers A and B, in logits.

    Returns
    -------
    ndarray of shape (n, 3)
        P(A wins), P(B wins), P(tie); float64, rows sum to 1.
    """
    s_a, s_b = worth[:, 0] + config.position_bias, worth[:, 1]
    half = (s_a - s_b) / 2
    scale = np.abs(half)  # keeps the largest exponent at zero
    weights = np.stack([np.exp(half - scale), np.exp(-half - scale), config.tie * np.exp(-scale)], axis=1)
    probs = weights / weights.sum(axis=1, keepdims=True)
    return (1 - config.noise) * probs + config.noise / PREFERENCE.n


def known_truth(rows: Rows) -> np.ndarray | None:
    """The rows' true class probabilities, (n, K), which a simulated arena knows; None where there are none.

    A column of that name that holds anything else is somebody else's.
    """
    if "true_probs" not in rows.table.column_names:
        return None
    try:
        probs = np.array(rows.table.column("true_probs").to_pylist(), dtype=np.float64)
    except (ValueError, TypeError):
        return None
    return probs if probs.shape == (len(rows), rows.classes.n) and np.isfinite(probs).all() else None


def bayes_log_loss(rows: Rows) -> tuple[float, np.ndarray]:
    """The log-loss of predicting each row's true probabilities: the best that any model can expect.

    Parameters
    ----------
    rows : Rows
        Labelled rows with a ``true_probs`` column.

    Returns
    -------
    expected : float
        Mean entropy of the true probabilities, in nats.
    realised : ndarray of shape (n,)
        ``-log(true_probs[label])`` a row: the loss on the labels as they fell.

    Raises
    ------
    UserError
        There is no ``true_probs`` column of probabilities, or a row has no label.
    """
    probs = known_truth(rows)
    if probs is None:
        raise UserError("simulated arena: has no column true_probs of probabilities; simulate it again")
    if (rows.labels < 0).any():
        raise UserError("the Bayes log-loss of unlabelled rows is not defined; give labelled rows")
    log_probs = np.log(np.maximum(probs, np.finfo(np.float32).tiny))
    expected = float(-(probs * log_probs).sum(axis=1).mean())
    return expected, -log_probs[np.arange(len(rows)), rows.labels]


def _quality(dice: Dice, request: Request, skill: float) -> Quality:
    def flaw(logit: float) -> bool:
        return dice.chance(1 / (1 + float(np.exp(skill - logit))))

    refused = flaw(-2.2)
    return Quality(
        correct=not flaw(-0.4) and not refused,
        complete=not (request.can_fall_short and flaw(-0.6)) and not refused,
        well_formed=not (request.form and flaw(-0.6)) and not refused,
        refused=refused,
        hedged=flaw(-1.2) and not refused,
        strayed=flaw(-1.2),
        broken_off=flaw(-1.4),
        rude=flaw(-1.8),
        polite=not flaw(0.4),
        fillers=(dice.below(4) + 1) // 2,
    )


def _worth(config: ArenaConfig, quality: Quality, words: int) -> float:
    traits = (
        "correct", "complete", "well_formed", "polite", "hedged", "refused", "strayed", "broken_off", "rude",
    )  # fmt: skip
    worth = sum(getattr(config, trait) for trait in traits if getattr(quality, trait))
    return worth + config.length_bias * min(words, 40) / 10
