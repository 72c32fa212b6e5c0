"""Losses against their definitions, by gradient check and by invariance."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from data.errors import UserError
from distill.losses import (
    LOSSES,
    centred_mse,
    cross_entropy,
    distillation_kl,
    mix_teachers,
    named_terms,
    soft_label_terms,
    total,
)


def named_loss(name, logits, targets, **given):
    return total(named_terms(name, logits, targets, **given))


def soft_label_loss(*given):
    return total(soft_label_terms(*given))


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


TEACHERS = double(4, 2, 3, seed=2)
MIX = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5], [0.1, 0.9]], dtype=torch.float64)


def given(teachers, weights):
    """Everything that a named loss may need."""
    return {
        "teacher_logits": teachers,
        "teacher_weights": weights,
        "weight": 0.6,
        "temperature": 2.0,
        "smoothing": 0.1,
    }


@pytest.mark.parametrize("name", LOSSES)
def test_every_named_loss_has_its_gradient_and_ignores_a_constant(name):
    logits = double(4, 3).requires_grad_()
    targets = double(4, 3, seed=1).softmax(-1)

    def loss(x, teachers=TEACHERS):
        return named_loss(name, x, targets, **given(teachers, MIX))

    assert torch.autograd.gradcheck(loss, (logits,))
    shifts = torch.tensor([7.0, -3.0, 0.5, 100.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(logits + shifts), loss(logits))
    torch.testing.assert_close(loss(logits, TEACHERS + shifts[:, None]), loss(logits))
    assert loss(logits).shape == (4,)
    moved = torch.autograd.grad(loss(logits).sum(), logits)[0]
    assert moved.abs().max() > 1e-3


def test_an_unknown_loss_is_refused_with_the_list():
    with pytest.raises(UserError, match="focal: no such loss; it is one of kl, blackpearl"):
        named_loss("focal", double(4, 3), double(4, 3))


def test_names_are_known_without_torch():
    code = "import sys, distill.config; from distill.losses import LOSSES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}; assert LOSSES['kl'].taught"], check=True)


def test_presets_mix_their_terms_as_published():
    logits, targets, equal = double(4, 3), double(4, 3, seed=1).softmax(-1), torch.full((2,), 0.5).double()
    ce = cross_entropy(logits, targets)
    kl = [distillation_kl(logits, TEACHERS[:, t], 1.0) for t in range(2)]
    cos = [
        F.cosine_embedding_loss(
            logits.softmax(-1), TEACHERS[:, t].softmax(-1), torch.ones(4), reduction="none"
        )
        for t in range(2)
    ]

    def named(name):
        return named_loss(name, logits, targets, **given(TEACHERS, equal))

    torch.testing.assert_close(named("blackpearl"), (ce + kl[0] + cos[0] + kl[1] + cos[1]) / 5)
    torch.testing.assert_close(named("wsdm1"), (0.5 * ce + sum(kl) / 2 + sum(cos) / 2) / 2.5)
    torch.testing.assert_close(named("wsdm3"), soft_label_loss(logits, targets, TEACHERS, equal, 0.9, 5.0))
    labels = torch.tensor([0, 1, 2, 0])
    smooth = named_loss("smoothing", logits, F.one_hot(labels, 3).double(), smoothing=0.2)
    torch.testing.assert_close(smooth, F.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none"))


def test_mse_of_centred_logits_is_the_limit_of_a_high_temperature():
    logits, teacher = double(5, 3), double(5, 3, seed=1)
    hot = 1e4**2 * distillation_kl(logits, teacher, 1e4)
    torch.testing.assert_close(centred_mse(logits, teacher), hot, rtol=1e-3, atol=1e-6)


def test_teachers_are_mixed_in_the_space_that_is_asked_for():
    probs = TEACHERS.softmax(-1)
    arithmetic = mix_teachers(TEACHERS, MIX, "probability").softmax(-1)[:, 0]
    torch.testing.assert_close(arithmetic, (probs * MIX[..., None]).sum(1), rtol=1e-6, atol=1e-9)
    geometric = mix_teachers(TEACHERS, MIX, "log").softmax(-1)[:, 0]
    product = (probs ** MIX[..., None]).prod(1)
    torch.testing.assert_close(geometric, product / product.sum(-1, keepdim=True))


def test_separate_terms_pull_as_one_mixed_teacher_does_at_temperature_one():
    """The KL terms of several teachers have the gradient of the KL to their mean probability."""
    grads = []
    for teachers, weights in (
        (TEACHERS, MIX),
        (mix_teachers(TEACHERS, MIX, "probability"), torch.ones(4, 1).double()),
    ):
        logits = double(4, 3).requires_grad_()
        soft_label_loss(logits, double(4, 3).softmax(-1), teachers, weights, 0.8, 1.0).sum().backward()
        grads.append(logits.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("kl", ["ce", "kl"]),
        ("blackpearl", ["ce", "kl", "cosine"]),
        ("corrected", ["mse"]),
        ("wsdm1", ["ce", "kl", "cosine"]),
        ("wsdm3", ["ce", "kl"]),
        ("mse", ["ce", "mse"]),
        ("smoothing", ["base"]),
        ("hard", ["base"]),
    ],
)
def test_a_loss_is_made_of_its_terms_by_name(name, terms):
    found = named_terms(name, double(4, 3), double(4, 3, seed=1).softmax(-1), **given(TEACHERS, MIX))
    assert list(found) == terms
    assert all(term.shape == (4,) for term in found.values())


def test_the_correction_leads_a_biased_teachers_student_to_the_truth():
    """Over labels drawn from the truth, the corrected optimum is nearer to it than the teacher is."""
    truth = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    teacher = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64).log()
    wanted = truth.log() - truth.log().mean()

    def optimum(weight):
        logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        step = torch.optim.LBFGS([logits], max_iter=50)

        def closure():
            step.zero_grad()
            shared = logits.mean(dim=0).expand(3, 3)  # one student for every label
            value = named_loss(
                "corrected",
                shared,
                torch.eye(3, dtype=torch.float64),
                teacher_logits=teacher.expand(3, 1, 3),
                teacher_weights=torch.ones(1, dtype=torch.float64),
                weight=weight,
            )
            value = (value * truth).sum()
            value.backward()
            return value

        step.step(closure)
        found = logits.mean(dim=0).detach()
        return found - found.mean()

    def distance(found):
        return (found - wanted).abs().max().item()

    plain = optimum(1.0)
    torch.testing.assert_close(plain, teacher - teacher.mean(), atol=1e-4, rtol=0)
    assert distance(optimum(0.0)) < 0.2 * distance(plain)
    assert distance(optimum(0.0)) < distance(optimum(0.5)) < distance(plain)
