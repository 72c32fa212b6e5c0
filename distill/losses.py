"""Losses on logits, one small function each; every one returns a loss a sequence, shape (n,).

None of them changes when a constant is added to a row's logits: only differences of logits mean anything.
:data:`LOSSES` names the mixtures that a recipe can ask for with ``distill.loss``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

LOSSES = {
    "kl": "(1 - weight) CE + weight T^2 KL (Hinton et al.)",
    "blackpearl": "mean of CE and each teacher's KL and cosine distance, T = 1 (LMSYS, 1st place)",
    "wsdm1": "(0.5 CE + KL + cosine distance) / 2.5, T = 1 (WSDM Cup, 1st place)",
    "wsdm3": "0.1 CE + 0.9 T^2 KL with T = 5 (WSDM Cup, 3rd place)",
    "mse": "(1 - weight) CE + weight MSE of centred logits (Ba and Caruana)",
    "smoothing": "CE against smoothed hard labels; no teacher (Szegedy et al.)",
    "hard": "CE against the labels; no teacher",
}
UNTAUGHT = ("smoothing", "hard")
"""Losses that need no teacher."""
MIXINGS = ("separate", "probability", "log")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a target distribution.

    Parameters
    ----------
    logits, targets : Tensor of shape (n, K)
        Targets are probabilities: one-hot for hard labels.
    """
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    """Targets mixed with the uniform distribution (Szegedy et al., arXiv 1512.00567, section 7)."""
    return (1 - smoothing) * targets + smoothing / targets.shape[-1]


def distillation_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""KL divergence from the softened teacher to the softened student.

    :math:`KL(\mathrm{softmax}(t/T) \| \mathrm{softmax}(s/T))`, shape (n,). Gradients shrink with
    :math:`1/T^2`, so callers multiply by :math:`T^2` (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    student = F.log_softmax(logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def cosine_distance(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """One minus the cosine between the softened probabilities of teacher and student.

    Of probabilities, as in the 1st place's code of the LMSYS competition (shyoulala/LMSYS_BlackPearl):
    the cosine of logits would change with a constant added to them.
    """
    student = F.softmax(logits / temperature, dim=-1)
    teacher = F.softmax(teacher_logits / temperature, dim=-1)
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
    logs = F.log_softmax(teacher_logits, dim=-1)
    shares = weights.expand(logs.shape[:2])[..., None]
    if mixing == "log":
        return (shares * logs).sum(dim=1, keepdim=True)
    tiny = 1e-30
    return (logs + shares.clamp_min(tiny).log()).logsumexp(dim=1, keepdim=True)


def soft_label_loss(
    logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor,
    teacher_weights: Tensor,
    weight: float,
    temperature: float,
) -> Tensor:
    r"""(1 - w) CE + w T^2 sum_t a_t KL_t, shape (n,).

    With T=5 and w=.9 this is the 3rd place's of the WSDM Cup (LIHANG-HONG), the best of their sweep.

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
    hard = cross_entropy(logits, targets)
    per_teacher = distillation_kl(logits[:, None, :], teacher_logits, temperature)
    soft = over_teachers(per_teacher, teacher_weights)
    return (1 - weight) * hard + weight * temperature**2 * soft


def five_term_loss(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor
) -> Tensor:
    """(CE + KL_1 + cos_1 + KL_2 + cos_2) / 5 for two equal teachers; the like mean for any number.

    The 1st place's loss of the LMSYS competition (shyoulala/LMSYS_BlackPearl).
    """
    terms = distillation_kl(logits[:, None], teacher_logits, 1.0)
    terms = terms + cosine_distance(logits[:, None], teacher_logits)
    teachers = teacher_logits.shape[1]
    soft = teachers * over_teachers(terms, teacher_weights)
    return (cross_entropy(logits, targets) + soft) / (1 + 2 * teachers)


def kl_cosine_loss(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor
) -> Tensor:
    """(0.5 CE + KL + cosine distance) / 2.5: the 1st place's of the WSDM Cup (maxreciprocate)."""
    terms = distillation_kl(logits[:, None], teacher_logits, 1.0)
    terms = terms + cosine_distance(logits[:, None], teacher_logits)
    return (0.5 * cross_entropy(logits, targets) + over_teachers(terms, teacher_weights)) / 2.5


def logit_loss(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, teacher_weights: Tensor, weight: float
) -> Tensor:
    """(1 - w) CE + w MSE of centred logits (Ba and Caruana, arXiv 1312.6184)."""
    soft = over_teachers(centred_mse(logits[:, None], teacher_logits), teacher_weights)
    return (1 - weight) * cross_entropy(logits, targets) + weight * soft


def swap_consistency(logits: Tensor, permutation: list[int]) -> Tensor:
    """Jensen-Shannon divergence between the predictions of a pair's two orders, classes permuted back.

    Zero where exchanging the responses exchanges the verdict, at most log 2 (Lin, 1991, *Divergence
    measures based on the Shannon entropy*).

    Parameters
    ----------
    logits : Tensor of shape (2 n, K)
        Both orders of each row, one behind the other.

    Returns
    -------
    Tensor of shape (2 n,)
        A row's divergence stands at both of its sequences.
    """
    given = F.log_softmax(logits[0::2], dim=-1)
    swapped = F.log_softmax(logits[1::2][:, permutation], dim=-1)
    log_two = 0.6931471805599453
    middle = F.log_softmax(given.logaddexp(swapped) - log_two, dim=-1)
    divergence = (given.exp() * (given - middle) + swapped.exp() * (swapped - middle)).sum(dim=-1) / 2
    return divergence.repeat_interleave(2)


def named_loss(
    name: str,
    logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor | None,
    teacher_weights: Tensor | None,
    weight: float,
    temperature: float,
    smoothing: float,
) -> Tensor:
    """Return the loss of one of :data:`LOSSES`; the teachers may be missing in :data:`UNTAUGHT` ones."""
    if name == "hard":
        return cross_entropy(logits, targets)
    if name == "smoothing":
        return cross_entropy(logits, smoothed(targets, smoothing))
    assert teacher_logits is not None
    assert teacher_weights is not None
    if name == "blackpearl":
        return five_term_loss(logits, targets, teacher_logits, teacher_weights)
    if name == "wsdm1":
        return kl_cosine_loss(logits, targets, teacher_logits, teacher_weights)
    if name == "mse":
        return logit_loss(logits, targets, teacher_logits, teacher_weights, weight)
    if name == "wsdm3":
        weight, temperature = 0.9, 5.0
    return soft_label_loss(logits, targets, teacher_logits, teacher_weights, weight, temperature)
