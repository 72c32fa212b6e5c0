"""Rotating changes no product, undoes itself, and leaves int8 its steps where channels stick out."""

import pytest
import torch

from distill.kernels.linear import QuantisedLinear, parts
from distill.kernels.products import FrozenProduct
from distill.kernels.rotation import hadamard, quantise_rotated, rotated
from distill.kernels.scaled import quantise_rows


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "block"), [(192, 64), (80, 16), (51, 1)])
def test_it_is_orthogonal_and_its_own_inverse(width, block):
    x, weight = drawn(10, width), drawn(7, width, seed=1)
    torch.testing.assert_close(rotated(rotated(x)), x)
    torch.testing.assert_close(rotated(x) @ rotated(weight).T, x @ weight.T, atol=1e-4, rtol=1e-4)
    alone = torch.zeros(1, width)
    alone[0, width // 2] = 1
    assert int((rotated(alone) != 0).sum()) == block


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_its_matrix_is_exact_in_16_bits(dtype):
    wanted = hadamard(64, torch.device("cpu"), torch.float64)
    assert torch.equal(hadamard(64, torch.device("cpu"), dtype).double(), wanted)
    assert torch.equal(wanted @ wanted, torch.eye(64, dtype=torch.float64))


def test_rows_are_rotated_and_rounded():
    x = drawn(5, 128)
    for found, wanted in zip(quantise_rotated(x), quantise_rows(rotated(x), torch.int8), strict=True):
        assert torch.equal(found, wanted)


def test_a_channel_that_sticks_out_costs_the_others_nothing():
    """Against float32: with a channel 200 times the others rounding alone loses several times as much."""
    x, weight = drawn(40, 256), drawn(32, 256, seed=1)
    x[:, 9] *= 200
    weight[:, 9] /= 200
    exact = x @ weight.T

    def gap(y):
        return float((y - exact).norm() / exact.norm())

    values, scale = quantise_rows(x, torch.int8)
    held, w_scale = quantise_rows(weight, torch.int8)
    alone = gap((values.float() * scale) @ (held.float() * w_scale).T)
    kind, shape, stored = parts(QuantisedLinear(weight, "int8_int8"))
    assert gap(FrozenProduct.apply(x, kind, shape, *stored)) < 0.25 * alone
