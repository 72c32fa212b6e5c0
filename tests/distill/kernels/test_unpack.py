"""NF4 unpacked to 8 bits is bitsandbytes' dequantisation, rounded under a scale a row."""

import bitsandbytes as bnb
import pytest
import torch

from distill.kernels.linear import QuantisedLinear, multiply_in, parts
from distill.kernels.products import ROUNDED, FrozenProduct, dense
from distill.kernels.rotation import rotated
from distill.kernels.scaled import quantise_rows
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


@pytest.mark.parametrize("name", ["fp8", "int8"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(48, 128), (32, 192), (6, 96)])
def test_it_is_the_dequantised_weight_rounded_by_rows(shape, nested, name):
    layer = layer_of(shape, nested, outlier=30.0)
    exact = dense("nf4", list(parts(layer)[2]), list(shape), torch.float32)
    dtype = ROUNDED[f"nf4_{name}"]
    wanted, scale = quantise_rows(rotated(exact) if name == "int8" else exact, dtype)
    multiply_in(torch.nn.Sequential(layer), name)
    kind, found_shape, stored = parts(layer)
    assert (kind, found_shape) == (f"nf4_{name}", shape)
    torch.testing.assert_close(stored[1], scale)
    found = unpack(list(stored), list(shape), dtype)
    assert found.dtype == dtype
    assert torch.equal(found.float(), wanted.float())
    turned = unpack(list(stored), list(shape), dtype, turned=True)
    assert torch.equal(turned.float(), found.float().T)
    assert torch.equal(dense(kind, list(stored), list(shape), torch.float32), exact)


@pytest.mark.parametrize("kind", ["nf4_fp8", "nf4_int8", "int8_int8", "fp8"])
def test_both_products_use_the_same_rounded_weight(kind):
    """Forward and input gradient against float64 products of the weight that 8 bits hold."""
    layer, dtype = layer_of((32, 64), False), ROUNDED[kind]
    if kind.startswith("nf4"):
        multiply_in(torch.nn.Sequential(layer), kind.removeprefix("nf4_"))
    else:
        layer = QuantisedLinear(dense("nf4", list(parts(layer)[2]), [32, 64], torch.float32), kind)
    found, shape, stored = parts(layer)
    assert found == kind
    codes = unpack(list(stored), list(shape), dtype) if kind.startswith("nf4") else stored[0]
    rotate = rotated if dtype == torch.int8 else torch.clone
    codes = codes.double()
    weight = rotate(codes * stored[1].double())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 64, generator=generator).requires_grad_()
    dy = torch.randn(10, 32, generator=generator)
    y = FrozenProduct.apply(x, kind, shape, *stored)
    (dx,) = torch.autograd.grad(y, x, dy)
    values, scale = quantise_rows(rotate(x.detach()), dtype)
    torch.testing.assert_close(y.double(), rotate(values.double() * scale) @ weight.T, atol=1e-4, rtol=1e-5)
    values, scale = quantise_rows(dy * stored[1].T, dtype)
    torch.testing.assert_close(dx.double(), rotate((values.double() * scale) @ codes), atol=1e-4, rtol=1e-5)
    assert (dx.double() - dy.double() @ weight).norm() < 0.06 * dx.double().norm()
