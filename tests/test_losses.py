"""Losses against their definitions, by gradient check and by invariance."""

import pytest
import torch
from torch.nn import functional as F

from distill.losses import cross_entropy, distillation_kl, soft_label_loss


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_on_hard_labels_is_torchs():
    logits = double(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    ours = cross_entropy(logits, F.one_hot(labels, 4).double())
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, reduction="none"))


def test_kl_is_torchs_and_zero_only_at_the_teacher():
    logits, teacher = double(5, 3), double(5, 3, seed=1)
    expected = F.kl_div(
        (logits / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(distillation_kl(logits, teacher, 2.0), expected.sum(-1))
    torch.testing.assert_close(distillation_kl(teacher, teacher, 2.0), torch.zeros(5, dtype=torch.float64))
    assert (distillation_kl(logits, teacher, 2.0) > 0).all()


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.7, 1.0), (1.0, 3.0)])
def test_soft_label_loss_gradient_and_shift_invariance(weight, temperature):
    logits = double(4, 3).requires_grad_()
    targets, teachers = double(4, 3, seed=1).softmax(-1), double(4, 2, 3, seed=2)
    mix = torch.tensor([0.25, 0.75], dtype=torch.float64)

    def loss(x):
        return soft_label_loss(x, targets, teachers, mix, weight, temperature)

    assert torch.autograd.gradcheck(loss, (logits,))
    torch.testing.assert_close(loss(logits + 7), loss(logits))


def test_soft_label_loss_mixes_as_written():
    logits, targets, teachers = double(4, 3), double(4, 3, seed=1).softmax(-1), double(4, 2, 3, seed=2)
    mix = torch.tensor([0.25, 0.75], dtype=torch.float64)
    by_hand = 0.4 * cross_entropy(logits, targets) + 0.6 * 9 * (
        0.25 * distillation_kl(logits, teachers[:, 0], 3.0)
        + 0.75 * distillation_kl(logits, teachers[:, 1], 3.0)
    )
    torch.testing.assert_close(soft_label_loss(logits, targets, teachers, mix, 0.6, 3.0), by_hand)


def test_gradient_size_does_not_depend_on_a_high_temperature():
    """T² makes the soft gradient comparable at any T (Hinton et al., section 2.1)."""
    norms = []
    for temperature in (20.0, 40.0):
        logits = double(8, 3).requires_grad_()
        soft_label_loss(
            logits,
            double(8, 3).softmax(-1),
            double(8, 1, 3, seed=4),
            torch.ones(1, dtype=torch.float64),
            1.0,
            temperature,
        ).sum().backward()
        norms.append(float(logits.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
