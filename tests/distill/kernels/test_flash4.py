"""FlashAttention-4's operator: what the package is told and given back, by a stand-in that is the formula."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from data.errors import UserError
from distill.kernels import flash4
from distill.kernels.agreement import Heads, agrees, gaps_to_formula
from distill.kernels.attention import attend
from distill.kernels.choice import attention_for

CPU = torch.device("cpu")


def by_formula(query, key, value, told):
    """Attention of every document, written out; told as the package's passes are."""
    assert told["causal"]
    lengths, seen = (told[f"cu_seqlens_{kind}"].diff().tolist() for kind in "qk")
    assert max(seen) <= told["max_seqlen_q"] == told["max_seqlen_k"]
    left, cap = told["window_size_left"], told["softcap"]
    options = {"scaling": told["softmax_scale"], "softcap": cap or None}
    options["window"] = None if left is None else left + 1
    key, value = key[: sum(seen)], value[: sum(seen)]  # what lies behind no document sees
    parts = ((query, lengths), (key, seen), (value, seen))
    pieces = zip(*(x.transpose(0, 1)[None].split(n, dim=2) for x, n in parts), strict=True)
    found = [attend(*piece, **options) for piece in pieces if piece[0].numel()]
    return torch.cat(found, dim=2)[0].transpose(0, 1).contiguous()


def forward(query, key, value, return_lse=False, **told):
    assert return_lse
    out = by_formula(query, key, value, told)
    return out, torch.zeros(query.shape[1], query.shape[0]), None, None, None


def backward(query, key, value, out, grad, lse, **told):
    assert out.shape == grad.shape == query.shape
    assert grad.is_contiguous()
    assert lse.shape == (query.shape[1], query.shape[0])

    def differentiated():
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        return torch.autograd.grad(by_formula(*inputs, told), inputs, grad)

    with ThreadPoolExecutor(1) as elsewhere:  # within an operator there is no autograd
        return elsewhere.submit(differentiated).result()


@pytest.fixture
def package(monkeypatch):
    made = SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    monkeypatch.setattr(flash4, "_package", lambda: made)
    return made


@pytest.mark.parametrize("window", [None, 1, 50, 4096])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("shared", [False, True])
def test_the_operator_is_the_formula(package, window, softcap, shared):
    asked = torch.float32, Heads(size=16, cap=softcap, window=window), 8.0
    assert max(gaps_to_formula("fa4", CPU, *asked, shared=shared)) < 1e-5
    if shared and window is None:
        apart = gaps_to_formula("sdpa" if softcap is None else "eager", CPU, *asked)
        assert max(apart) < 1e-5


def test_prefixes_are_shared_only_by_a_package_that_attends_to_them(package, monkeypatch):
    assert agrees("fa4", CPU, torch.float32, shared=True)

    def first_sees_first(query, key, value, **told):
        return forward(query, key, value, **(told | {"cu_seqlens_k": told["cu_seqlens_q"]}))

    monkeypatch.setattr(package, "_flash_attn_fwd", first_sees_first)
    assert agrees("fa4", CPU, torch.float32)
    assert not agrees("fa4", CPU, torch.float32, shared=True)


def test_a_package_that_takes_other_arguments_or_errs_is_left_out(package, monkeypatch):
    assert agrees("fa4", CPU, torch.float32)

    def renamed(query, key, value, scale, bounds):
        raise AssertionError("not reached")

    def halved(*args, **told):
        return tuple(grad / 2 for grad in backward(*args, **told))

    for name, other in (("_flash_attn_fwd", renamed), ("_flash_attn_bwd", halved)):
        with monkeypatch.context() as patched:
            patched.setattr(package, name, other)
            assert not agrees("fa4", CPU, torch.float32)


def test_the_compiler_sees_one_operator(package):
    query, key = torch.randn(8, 4, 16, requires_grad=True), torch.randn(8, 2, 16, requires_grad=True)
    bounds = torch.tensor([0, 5, 8, 8], dtype=torch.int32)
    args = (query, key, key.detach().clone().requires_grad_(), bounds, bounds, 5, 0.25, 2, 0.0)
    torch.library.opcheck(flash4.flash4_forward, args)


def test_it_is_refused_without_its_package():
    with pytest.raises(UserError, match="needs the package flash-attn-4"):
        attention_for(AutoConfig.for_model("llama"), "flash_attention_4")
