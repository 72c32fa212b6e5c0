"""Rounding to 8 bits under row scales, and int8 products by torch where there is no kernel."""

import pytest
import torch

from distill.kernels import scaled
from distill.kernels.scaled import FP8, by_torch, quantise_rows, written_out


@pytest.mark.parametrize(("dtype", "step"), [(torch.int8, 1 / 127), (FP8, 1 / 8)])
def test_rounded_rows_are_near_and_reach_the_dtypes_largest(dtype, step):
    """int8 is within half a step of the row's largest, e4m3 within a sixteenth of the number itself."""
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 20)[:, None]
    x[3] = 0
    values, scale = quantise_rows(x, dtype)
    assert values.dtype == dtype
    assert scale.shape == (20, 1)
    size = x.abs().amax(1, keepdim=True) if dtype == torch.int8 else x.abs()
    assert ((values.float() * scale - x).abs() <= step / 2 * size + 1e-9).all()
    largest = values.float().abs().amax(1)
    assert (largest[[0, 19]] == scaled.LARGEST[dtype]).all()
    assert largest[3] == 0


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_torchs_int8_product_is_the_formula(rows, monkeypatch):
    """In parts and with too few rows for it; values small enough for processors whose products saturate."""
    monkeypatch.setattr(scaled, "ROWS_AT_ONCE", 24)
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randint(-63, 64, (n, 48), generator=generator).to(torch.int8) for n in (rows, 32))
    x_scale, w_scale = (torch.rand(n, 1, generator=generator) + 0.1 for n in (rows, 32))
    found, wanted = (how(x, x_scale, weight, w_scale, torch.float32) for how in (by_torch, written_out))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)
    assert by_torch(x, x_scale, weight, w_scale, torch.float16).dtype == torch.float16
