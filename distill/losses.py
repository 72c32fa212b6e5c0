"""Losses on logits, one small function each; every one returns a loss a sequence, shape (n,).

None of them changes when a constant is added to a row's logits: only differences of logits mean anything.
:data:`LOSSES` holds the mixtures that a recipe can ask for with ``distill.loss``. One that has several terms
returns each by its name, so that a training logs them by themselves; their sum is the loss. To add one, write
it here under :func:`loss`, or in a file of your own (:mod:`distill.own_loss`). Recipes are checked against
their names, so this file loads without torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from data.errors import UserError, listing

if TYPE_CHECKING:
    from torch import Tensor


Terms: TypeAlias = "dict[str, Tensor]"
"""A loss by its terms, each of shape (n,), their weights already in them."""
Formula: TypeAlias = "Callable[..., Tensor | Terms]"
F = TypeVar("F", bound="Formula")


@dataclass(frozen=True)
class NamedLoss:
    """A loss that a recipe can ask for.

    Attributes
    ----------
    formula : callable
        From logits, targets and what it ``needs`` to a loss a sequence, or to its terms by name.
    description : str
    needs : tuple of str
        Its further parameters: ``teacher_logits`` and ``teacher_weights``, and fields of
        :class:`distill.config.DistillConfig`.
    source, hash : str
        Of a loss of the user's own: file and function, and the file's hash.
    sets : bool
        Whether it is right for rows with candidates of their own: it sees logits and targets through a
        softmax alone, which gives nothing to the places that a row's set lacks.
    """

    formula: Formula
    description: str
    needs: tuple[str, ...]
    source: str = ""
    hash: str = ""
    sets: bool = False

    @property
    def taught(self) -> bool:
        """Whether it needs teachers."""
        return "teacher_logits" in self.needs


LOSSES: dict[str, NamedLoss] = {}
LEAST_CORRECTED = 0.05
"""A label corrects no teacher by more than the inverse of this."""


def loss(name: str, description: str, sets: bool = False) -> Callable[[F], F]:
    """Register the decorated formula; what it needs are its parameters after logits and targets."""

    def register(formula: F) -> F:
        needs = tuple(inspect.signature(formula).parameters)[2:]
        LOSSES[name] = NamedLoss(formula, description, needs, sets=sets)
        return formula

    return register


def named_terms(name: str, logits: Tensor, targets: Tensor, **given: Any) -> Terms:
    """Return the terms of the loss registered as ``name``, which takes what it needs of ``given``.

    Raises
    ------
    UserError
        There is no such loss.
    """
    if name not in LOSSES:
        raise UserError(f"{name}: no such loss; it is one of {listing(LOSSES, len(LOSSES))}")
    found = LOSSES[name]
    value = found.formula(logits, targets, **{need: given[need] for need in found.needs})
    return value if isinstance(value, dict) else {"base": value}


def total(terms: Terms) -> Tensor:
    """Add up the terms of a loss, shape (n,)."""
    first, *others = terms.values()
    return sum(others, first)


def label_loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy against the targets of a collated batch: what a teacher is trained with."""
    return cross_entropy(logits, batch["targets"])


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a target distribution.

    Parameters
    ----------
    logits, targets : Tensor of shape (n, K)
        Targets are probabilities: one-hot for hard labels.
    """
    return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1)


def distillation_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""KL divergence from the softened teacher to the softened student.

    :math:`KL(\mathrm{softmax}(t/T) \| \mathrm{softmax}(s/T))`, shape (n,). Gradients shrink with
    :math:`1/T^2`, so callers multiply by :math:`T^2` (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    student = (logits / temperature).log_softmax(dim=-1)
    teacher = (teacher_logits / temperature).log_softmax(dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def cosine_distance(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """One minus the cosine between the softened probabilities of teacher and student.

    Of probabilities, as in the 1st place's code of the LMSYS competition (shyoulala/LMSYS_BlackPearl):
    the cosine of logits would change with a constant added to them.
    """
    from torch.nn import functional as F

    student = (logits / temperature).softmax(dim=-1)
    teacher = (teacher_logits / temperature).softmax(dim=-1)
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def centred_mse(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half the mean squared difference of logits, each row centred first.

    Regression on logits is Ba and Caruana's (arXiv 1312.6184); halved and centred it is the limit of
    T^2 KL at high T (Hinton et al., section 2.1).
    """
    difference = logits - teacher_logits
    return (difference - difference.mean(dim=-1, keepdim=True)).square().mean(dim=-1) / 2


def over_teachers(per_teacher: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over teachers of a term of shape (n, teachers); weights (teachers,) or (n, teachers)."""
    return (per_teacher * weights).sum(dim=-1)


def mix_teachers(teacher_logits: Tensor, weights: Tensor, mixing: str) -> Tensor:
    """Several teachers as one, shape (n, 1, K): the mean of their probabilities or log-probabilities.

    A mean of probabilities is as unsure as the teachers are at odds; a mean of log-probabilities (Hinton,
    products of experts, 2002) stays as sure as they are.

    Parameters
    ----------
    teacher_logits : Tensor of shape (n, teachers, K)
    weights : Tensor of shape (teachers,) or (n, teachers)
        Summing to one.
    mixing : {"probability", "log"}
    """
    logs = teacher_logits.log_softmax(dim=-1)
    shares = weights.expand(logs.shape[:2])[..., None]
    if mixing == "log":
        return (shares * logs).sum(dim=1, keepdim=True)
    tiny = 1e-30
    return (logs + shares.clamp_min(tiny).log()).logsumexp(dim=1, keepdim=True)


@loss("kl", "(1 - weight) CE + weight T^2 KL (Hinton et al.)", sets=True)
def soft_label_terms(
    logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor,
    teacher_weights: Tensor,
    weight: float,
    temperature: float,
) -> Terms:
    r"""(1 - w) CE + w T^2 sum_t a_t KL_t, each of shape (n,).

    Parameters
    ----------
    logits, targets : Tensor of shape (n, K)
    teacher_logits : Tensor of shape (n, teachers, K)
    teacher_weights : Tensor of shape (teachers,) or (n, teachers)
        The :math:`a_t`, summing to one.
    weight : float
        w, the share of the soft labels.
    temperature : float
        T, above 0.
    """
    per_teacher = distillation_kl(logits[:, None, :], teacher_logits, temperature)
    return {
        "ce": (1 - weight) * cross_entropy(logits, targets),
        "kl": weight * temperature**2 * over_teachers(per_teacher, teacher_weights),
    }


@loss(
    "blackpearl", "mean of CE and each teacher's KL and cosine distance, T = 1 (LMSYS, 1st place)", sets=True
)
def five_terms(logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor) -> Terms:
    """(CE + KL_1 + cos_1 + KL_2 + cos_2) / 5 for two equal teachers; the like mean for any number.

    The 1st place's loss of the LMSYS competition (shyoulala/LMSYS_BlackPearl).
    """
    teachers = teacher_logits.shape[1]
    kl = over_teachers(distillation_kl(logits[:, None], teacher_logits, 1.0), teacher_weights)
    cosine = over_teachers(cosine_distance(logits[:, None], teacher_logits), teacher_weights)
    number = 1 + 2 * teachers
    return {
        "ce": cross_entropy(logits, targets) / number,
        "kl": teachers * kl / number,
        "cosine": teachers * cosine / number,
    }


@loss("wsdm1", "(0.5 CE + KL + cosine distance) / 2.5, T = 1 (WSDM Cup, 1st place)", sets=True)
def kl_cosine_terms(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor
) -> Terms:
    """(0.5 CE + KL + cosine distance) / 2.5: the 1st place's of the WSDM Cup (maxreciprocate)."""
    kl = over_teachers(distillation_kl(logits[:, None], teacher_logits, 1.0), teacher_weights)
    cosine = over_teachers(cosine_distance(logits[:, None], teacher_logits), teacher_weights)
    return {"ce": 0.5 * cross_entropy(logits, targets) / 2.5, "kl": kl / 2.5, "cosine": cosine / 2.5}


@loss("wsdm3", "0.1 CE + 0.9 T^2 KL with T = 5 (WSDM Cup, 3rd place)", sets=True)
def sharp_teacher_terms(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor
) -> Terms:
    """:func:`soft_label_terms` as the 3rd place of the WSDM Cup (LIHANG-HONG) used it."""
    return soft_label_terms(logits, targets, teacher_logits, teacher_weights, weight=0.9, temperature=5.0)


@loss("mse", "(1 - weight) CE + weight MSE of centred logits (Ba and Caruana)")
def logit_terms(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor, weight: float
) -> Terms:
    """(1 - w) CE + w MSE of centred logits (Ba and Caruana, arXiv 1312.6184)."""
    soft = over_teachers(centred_mse(logits[:, None], teacher_logits), teacher_weights)
    return {"ce": (1 - weight) * cross_entropy(logits, targets), "mse": weight * soft}


@loss("corrected", "MSE of centred logits to teachers corrected by (1 - weight) of the labels (Dao et al.)")
def corrected_logit_terms(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor, weight: float
) -> Terms:
    r"""MSE of centred logits to :math:`\log p + (1 - w)(y - p)/p`, the teacher corrected by the labels.

    The expected correction is, to first order, what the teacher's log-probabilities lack, so that a biased
    teacher misleads less. Dao, Kamath, Syrgkanis and Mackey, *Knowledge distillation as semiparametric
    inference*, arXiv 2104.09732, its loss correction for the squared error of logits; the price is the
    variance of 1/p, which :data:`LEAST_CORRECTED` bounds. Made for out-of-fold labels, which it calls
    cross-fitting.
    """
    logs = teacher_logits.log_softmax(dim=-1)
    probs = logs.exp()
    correction = (targets[:, None] - probs) / probs.clamp_min(LEAST_CORRECTED)
    soft = centred_mse(logits[:, None], logs + (1 - weight) * correction)
    return {"mse": over_teachers(soft, teacher_weights)}


@loss("smoothing", "CE against smoothed hard labels; no teacher (Szegedy et al.)")
def smoothing_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """CE against targets mixed with the uniform distribution (Szegedy et al., arXiv 1512.00567, sec. 7)."""
    return cross_entropy(logits, (1 - smoothing) * targets + smoothing / targets.shape[-1])


loss("hard", "CE against the labels; no teacher", sets=True)(cross_entropy)
