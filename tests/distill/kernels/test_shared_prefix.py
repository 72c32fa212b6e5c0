"""Attention around shared prefixes, by every implementation, against the formula over each sequence alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from distill.kernels import attention, flex
from distill.kernels.agreement import IMPLEMENTATIONS
from distill.kernels.attention import attend, repeated
from distill.kernels.flex import block_masks
from distill.packing.pack import pack
from distill.packing.sharing import layout, prefixes, shape_of
from tests.helpers.shared_rows import encoded

ROWS = [(70, 30, 1, 100), (0, 150), (20, 9, 40), (140, 3, 5, 130, 7), (16, 1, 1)]
HEADS, KV_HEADS, WIDTH = 4, 2, 8


def shared_pack(rows, filled):
    made = encoded(rows)
    found = prefixes(made, torch.arange(len(rows)).numpy())
    chosen = torch.arange(len(made.lengths)).numpy()
    longest = int(made.lengths.max())
    static = shape_of([layout(made, chosen, found)], longest) if filled else None
    return pack(made, chosen, 5, static, found)


def flash(query, key, value, query_bounds, key_bounds, *_, scale, window_size, **__):
    """FlashAttention's reading of its arguments: masks aligned at the last key, the rest undefined."""
    assert int(query_bounds[-1]) == len(query)
    out = []
    for i in range(len(query_bounds) - 1):
        q, k, v = (
            x[b[i] : b[i + 1]].transpose(0, 1)[None]
            for x, b in ((query, query_bounds), (key, key_bounds), (value, key_bounds))
        )
        if q.shape[2]:
            window = None if window_size[0] < 0 else window_size[0] + 1
            out.append(attend(q, k, v, scaling=scale, window=window)[0].transpose(0, 1))
    made = torch.cat(out)
    for x in (key, value):
        x.register_hook(
            lambda grad: grad.index_fill(0, torch.arange(int(key_bounds[-1]), len(grad)), torch.nan)
        )
    return made


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("name", ["eager", "sdpa", "varlen", "flex"])
def test_attention_is_that_of_the_sequences_alone(name, window, filled, monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", flash)
    monkeypatch.setattr(attention, "GQA_FLAG", {})
    monkeypatch.setattr(flex, "_compiled_flex", lambda: flex_attention)
    # The library's own formula for flex attention knows gradients on a CPU, too; its kernels do not.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    one = shared_pack(ROWS, filled)
    total = one.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    query, key, value = tensors = [
        torch.randn(1, n, total, WIDTH, generator=generator).requires_grad_()
        for n in (HEADS, KV_HEADS, KV_HEADS)
    ]
    softcap = 2.0 if name in {"eager", "flex"} else None
    options = {
        "scaling": 0.5,
        "softcap": softcap,
        "sliding_window": window,
        "cu_seq_lens_q": one.cu_seqlens,
        "cu_seq_lens_k": one.key_seqlens,
        "max_length_q": one.max_length,
        "max_length_k": one.max_length,
        "key_tokens": one.key_tokens,
    }
    masks = block_masks(
        one.position_ids[0], one.documents, window, one.max_length, one.cu_seqlens, one.parents
    )
    options["block_mask"] = masks[window is not None]
    found = IMPLEMENTATIONS[name](None, query, key, value, None, **options)[0][0]
    wanted = torch.zeros(total, HEADS, WIDTH)
    for number in range(int((one.cu_seqlens.diff() > 0).sum())):
        own = slice(*one.cu_seqlens[number : number + 2].tolist())
        seen = one.key_tokens[slice(*one.key_seqlens[number : number + 2].tolist())]
        # The whole sequence, of which the document's own tokens are the last.
        out = attend(*(x[:, :, seen] for x in tensors), scaling=0.5, softcap=softcap, window=window)
        wanted = wanted.index_copy(
            0, torch.arange(own.start, own.stop), out[0, :, own.start - own.stop :].transpose(0, 1)
        )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weights = torch.randn(found.shape, generator=generator)
    for ours, theirs in zip(
        *(torch.autograd.grad(out, tensors, weights) for out in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 200), st.integers(1, 90)), min_size=1, max_size=6
    ),
    window=st.sampled_from([None, 1, 64, 150, 300]),
    filled=st.booleans(),
)
def test_block_masks_hold_what_the_mask_lets_see(rows, window, filled):
    one = shared_pack(rows, filled)
    positions, documents, n = one.position_ids[0], one.documents, one.input_ids.shape[1]
    masks = block_masks(positions, documents, window, one.max_length, one.cu_seqlens, one.parents)
    continued = one.parents[documents.long()]
    for made, limit in zip(masks, (None, window), strict=True):

        def visible(batch, head, q, k, limit=limit):
            near = (documents[q] == documents[k]) | (continued[q] == documents[k])
            near = near & (positions[q] >= positions[k])
            return near if limit is None else near & (positions[q] - positions[k] < limit)

        wanted = create_block_mask(visible, None, None, n, n, device="cpu")
        every = torch.arange(n)
        mask = made.mask_mod(0, 0, every[:, None], every[None])
        assert torch.equal(mask, visible(0, 0, every[:, None], every[None]))
        partly, whole = (
            dense(made.kv_num_blocks, made.kv_indices),
            dense(made.full_kv_num_blocks, made.full_kv_indices),
        )
        should_whole = dense(wanted.full_kv_num_blocks, wanted.full_kv_indices)
        should = dense(wanted.kv_num_blocks, wanted.kv_indices) | should_whole
        assert not (partly & whole).any()
        assert not (should & ~(partly | whole)).any()
        assert not (whole & ~should_whole).any()
        if limit is None:
            assert torch.equal(partly | whole, should)


def dense(counts, indices):
    size = indices.shape[-1]
    blocks = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size):
        blocks[row, indices[0, 0, row, : counts[0, 0, row]].long()] = True
    return blocks


def test_a_key_that_several_documents_see_has_the_sum_of_their_gradients_and_none_of_nobodys():
    key = torch.randn(4, 2, 3, dtype=torch.bfloat16, requires_grad=True)
    found = repeated(key, torch.tensor([2, 0, 2, -1]), 0)
    assert torch.equal(found[:3], key[[2, 0, 2]])
    assert (found[3] == 0).all()
    weights = torch.ones(4, 2, 3, dtype=torch.bfloat16)
    weights[3] = torch.nan
    (grad,) = torch.autograd.grad(found, key, weights)
    assert grad[:, 0, 0].tolist() == [1, 0, 2, 0]
