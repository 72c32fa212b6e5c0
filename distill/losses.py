"""Losses on logits, one small function each; every one returns a loss a sequence, shape (n,)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a target distribution.

    Parameters
    ----------
    logits, targets : Tensor of shape (n, K)
        Targets are probabilities: one-hot for hard labels.
    """
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def distillation_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""KL divergence from the softened teacher to the softened student.

    :math:`KL(\mathrm{softmax}(t/T) \| \mathrm{softmax}(s/T))`, shape (n,). Gradients shrink with
    :math:`1/T^2`, so callers multiply by :math:`T^2` (Hinton et al., arXiv 1503.02531, section 2.1).
    """
    student = F.log_softmax(logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def soft_label_loss(
    logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor,
    teacher_weights: Tensor,
    weight: float,
    temperature: float,
) -> Tensor:
    r"""(1 - w) CE + w T^2 sum_t a_t KL_t, shape (n,).

    Parameters
    ----------
    logits, targets : Tensor of shape (n, K)
    teacher_logits : Tensor of shape (n, teachers, K)
    teacher_weights : Tensor of shape (teachers,)
        The :math:`a_t`, summing to one.
    weight : float
        w, the share of the soft labels.
    temperature : float
        T, above 0.
    """
    hard = cross_entropy(logits, targets)
    per_teacher = distillation_kl(logits[:, None, :], teacher_logits, temperature)
    soft = (per_teacher * teacher_weights).sum(dim=-1)
    return (1 - weight) * hard + weight * temperature**2 * soft
