"""Block masks laid out from where documents start, against the library's look at every pair of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import import_utils

from distill.kernels import agreement as flash
from distill.kernels.attention import eager, sdpa
from distill.kernels.choice import attention_for
from distill.kernels.flex import _capped, block_masks


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(100, 420)), min_size=1, max_size=6),
    window=st.sampled_from([None, 1, 64, 128, 150, 300]),
)
def test_block_masks_are_those_of_the_library(lengths, window):
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths])
    masks = block_masks(positions, documents, window, max(lengths))
    for made, limit in zip(masks, (None, window), strict=True):

        def visible(batch, head, q, k, limit=limit):
            near = (documents[q] == documents[k]) & (q >= k)
            return near if limit is None else near & (q - k < limit)

        n = len(documents)
        wanted = create_block_mask(visible, None, None, n, n, device="cpu")
        for field in ("kv", "q", "full_kv", "full_q"):
            counts, indices = getattr(made, f"{field}_num_blocks"), getattr(made, f"{field}_indices")
            assert torch.equal(counts, getattr(wanted, f"{field}_num_blocks"))
            for row, other, count in zip(
                indices[0, 0], getattr(wanted, f"{field}_indices")[0, 0], counts[0, 0], strict=True
            ):
                assert torch.equal(row[:count], other[:count])
        assert made.seq_lengths == wanted.seq_lengths
        for q, k in torch.randint(n, (20, 2)):
            assert torch.equal(made.mask_mod(0, 0, q, k), visible(0, 0, q, k))


def test_a_flash_package_is_taken_only_where_it_computes_attention(monkeypatch):
    """Packages that are right, blind to documents, wrong in a gradient, or made for another machine."""

    def blind(module, q, k, v, mask, **options):
        return eager(module, q, k, v, mask, **{**options, "cu_seq_lens_q": options["cu_seq_lens_q"][[0, -1]]})

    def forgetful(module, q, k, v, mask, **options):
        return eager(module, q, k.detach() + 0 * k, v, mask, **options)

    def foreign(*args, **options):
        raise RuntimeError("no kernel image is available for execution on the device")

    verdicts = []
    for implementation in (eager, sdpa, blind, forgetful, foreign):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_3", implementation)
        verdicts.append(flash.agrees("flash_attention_3", torch.device("cpu"), torch.float32))
    assert verdicts == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("installed", "wrong_at", "llama", "gemma"),
    [
        ("flash_attn_3", {}, "flash_attention_3", "flex"),
        ("flash_attn_4", {}, "fa4", "fa4"),
        ("flash_attn_4", {"size": 128}, "varlen", "fa4"),
        ("flash_attn_4", {"size": 256}, "fa4", "flex"),
        ("flash_attn_4", {"cap": 50.0}, "fa4", "flex"),
        ("flash_attn_4", {"window": None}, "varlen", "flex"),
        ("flash_attn_4", {"window": flash.WINDOW}, "fa4", "flex"),
    ],
)
def test_auto_takes_a_package_by_what_it_is_at_the_models_own_heads(
    monkeypatch, installed, wrong_at, llama, gemma
):
    """Caps by version 4 alone; a package wrong at one size of head is taken for the others."""

    def agrees(name, device, dtype, heads):
        return not wrong_at or any(getattr(heads, key) != value for key, value in wrong_at.items())

    flash.flash_package.cache_clear()
    for name in ("flash_attn_3", "flash_attn_4"):
        monkeypatch.setattr(import_utils, f"is_{name}_available", lambda here=name == installed: here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(flash, "agrees", agrees)
    shapes = {"llama": {"head_dim": 128}, "gemma2": {"head_dim": 256}}
    taken = [attention_for(AutoConfig.for_model(name, **shape), "auto") for name, shape in shapes.items()]
    flash.flash_package.cache_clear()
    assert taken == [llama, gemma]


def test_soft_capping_by_a_sigmoid_is_tanh():
    scores = torch.linspace(-400, 400, 2001, requires_grad=True)
    capped, tanh = _capped(50.0)(scores, None, None, None, None), 50 * torch.tanh(scores / 50)
    torch.testing.assert_close(capped, tanh, atol=2e-5, rtol=0)
    slopes = [torch.autograd.grad(out.sum(), scores)[0] for out in (capped, tanh)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=0)
