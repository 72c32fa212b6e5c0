"""NF4 unpacked to FP8 is bitsandbytes' dequantisation, rounded under a scale a row."""

import bitsandbytes as bnb
import pytest
import torch

from distill.kernels.linear import multiply_in_fp8, parts
from distill.kernels.products import FrozenProduct, dense, quantise_rows
from distill.kernels.unpack import unpack


def layer_of(shape, nested, outlier=1.0):
    """An NF4 layer whose rows differ in size, with one number far above the others of its row."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    weight *= torch.logspace(-2, 1, shape[0])[:, None]
    weight[1, 5] *= outlier
    layer = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, compress_statistics=nested, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=nested
    ).to("cpu")
    return layer


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(48, 128), (32, 192), (6, 96)])
def test_it_is_the_dequantised_weight_rounded_by_rows(shape, nested):
    layer = layer_of(shape, nested, outlier=30.0)
    exact = dense("nf4", list(parts(layer)[2]), list(shape), torch.float32)
    wanted, scale = quantise_rows(exact)
    multiply_in_fp8(torch.nn.Sequential(layer))
    kind, found_shape, stored = parts(layer)
    assert (kind, found_shape) == ("nf4_fp8", shape)
    torch.testing.assert_close(stored[1], scale)
    found = unpack(list(stored), list(shape))
    assert torch.equal(found.float(), wanted.float())
    turned = unpack(list(stored), list(shape), turned=True)
    assert torch.equal(turned.float(), found.float().T)
    assert torch.equal(dense(kind, list(stored), list(shape), torch.float32), exact)


def test_both_products_use_the_same_rounded_weight():
    """Forward and input gradient against float64 products of the weight that FP8 holds."""
    layer = layer_of((32, 64), False)
    multiply_in_fp8(torch.nn.Sequential(layer))
    kind, shape, stored = parts(layer)
    weight = unpack(list(stored), list(shape)).double() * stored[1].double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 64, generator=generator).requires_grad_()
    dy = torch.randn(10, 32, generator=generator)
    y = FrozenProduct.apply(x, kind, shape, *stored)
    (dx,) = torch.autograd.grad(y, x, dy)
    values, scale = quantise_rows(x.detach())
    torch.testing.assert_close(y.double(), (values.double() * scale) @ weight.T, atol=1e-4, rtol=1e-5)
    values, scale = quantise_rows(dy * stored[1].T)
    codes = unpack(list(stored), list(shape)).double()
    torch.testing.assert_close(dx.double(), (values.double() * scale) @ codes, atol=1e-4, rtol=1e-5)
    assert (dx.double() - dy.double() @ weight).norm() < 0.06 * dx.double().norm()
