"""Near-duplicate prompts: what is alike is united transitively, what only collides is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import PREFERENCE
from data.errors import UserError
from data.groups import (
    SHINGLE,
    Near,
    group_prompts,
    group_rows,
    largest_groups,
    shared_prompts,
    shingle_hashes,
)
from data.schema import Rows, make_rows

LONG = "Write a short story about a lighthouse keeper who finds a message in a bottle on the beach"


def rows_with(prompts: list[str]) -> Rows:
    ids = [f"r{i}" for i in range(len(prompts))]
    return make_rows({"row_id": ids, "prompt": [[p] for p in prompts]}, PREFERENCE, "drawn")


def jaccard(one: str, two: str) -> float:
    sets = [
        {t[i : i + SHINGLE] for i in range(max(1, len(t) - SHINGLE + 1))}
        for t in (one.ljust(SHINGLE), two.ljust(SHINGLE))
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_rewordings_are_united_and_other_prompts_are_not() -> None:
    prompts = [
        LONG,
        LONG + ".",
        LONG + ", please!",
        "Translate this poem into German",
        "hi",
        "hi!!",
        LONG.upper(),
    ]
    groups = group_rows(rows_with(prompts), Near(0.8))
    assert groups[0] == groups[1] == groups[2] == groups[6]
    assert len(set(groups)) == 4
    assert groups[0] == min(group_prompts([[p] for p in prompts[:3]]))
    exact = group_rows(rows_with(prompts))
    assert len(set(exact)) == 6


def test_prompts_of_another_set_are_found_equal_or_nearly_so() -> None:
    prompts = [LONG.upper(), LONG + ", please!", "Translate this poem into German", "hi!!"]
    others = rows_with([LONG, "hi", "An unlike prompt, of which there is no other"])
    assert shared_prompts(rows_with(prompts), others).tolist() == [True, False, False, False]
    assert shared_prompts(rows_with(prompts), others, Near(0.8)).tolist() == [True, True, False, False]


def test_union_is_transitive() -> None:
    chain = [LONG + " and then" * 0]
    for word in ("again", "tomorrow", "quickly", "with friends", "in winter", "at night"):
        chain.append(chain[-1] + " " + word)
    assert jaccard(chain[0], chain[-1]) < 0.8
    groups = group_rows(rows_with(chain), Near(0.8))
    assert len(set(groups)) == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_groups_are_unions_of_pairs_above_the_threshold(data: st.DataObject) -> None:
    base = data.draw(st.lists(st.text("abcdefgh ", min_size=20, max_size=60), min_size=1, max_size=5))
    prompts = []
    for _ in range(data.draw(st.integers(2, 14))):
        text = data.draw(st.sampled_from(base))
        at = data.draw(st.integers(0, len(text)))
        prompts.append(text[:at] + data.draw(st.text("xyz", max_size=2)) + text[at:])
    from data.groups import normalise_prompt

    texts = [normalise_prompt([p]) for p in prompts]
    groups = group_rows(rows_with(prompts), Near(0.7))
    for i, one in enumerate(texts):
        if any(groups[i] == groups[j] for j in range(len(texts)) if j != i):  # united: some neighbour is near
            assert any(
                one == two or jaccard(one, two) >= 0.7
                for j, two in enumerate(texts)
                if j != i and groups[j] == groups[i]
            )
        for j, two in enumerate(texts):
            if jaccard(one, two) >= 0.9:  # well above the threshold, none is missed
                assert groups[i] == groups[j]


def test_order_and_chunks_make_no_difference_to_who_is_together(monkeypatch: pytest.MonkeyPatch) -> None:
    import data.groups

    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(300)]
    base = [" ".join(rng.choice(words, 14)) for _ in range(60)]
    prompts = base + [text + " extra" for text in base[:30]] + base[:5]
    rows = rows_with(prompts)
    groups = group_rows(rows, Near(0.8))
    assert len(set(groups)) == 60
    monkeypatch.setattr(data.groups, "CHUNK_ROWS", 7)
    assert group_rows(rows, Near(0.8)) == groups
    order = rng.permutation(len(prompts))
    assert group_rows(rows.take(order), Near(0.8)) == [groups[i] for i in order]


def test_a_crowd_of_alike_prompts_takes_no_quadratic_time() -> None:
    prompts = [f"{LONG} number {i:05d} of the series {i * 7919 % 10007}" for i in range(4000)]
    assert len(set(group_rows(rows_with(prompts), Near(0.6)))) == 1


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_shingle_hashes_are_those_of_each_text_alone(texts: list[str]) -> None:
    hashes, offsets = shingle_hashes(texts)
    assert offsets[-1] == len(hashes)
    for text, start, end in zip(texts, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        alone, _ = shingle_hashes([text])
        assert hashes[start:end].tolist() == alone.tolist()
        padded = text.ljust(SHINGLE)
        pieces = [padded[i : i + SHINGLE] for i in range(len(padded) - SHINGLE + 1)]
        assert len({*pieces}) == len({*alone.tolist()})


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.8, 0.95, 1.0):
        count, width = Near(threshold).bands
        assert count * width <= 128
        assert 1 - (1 - threshold**width) ** count >= 0.95
    for wrong in (0.1, 1.2, float("nan")):
        with pytest.raises(UserError, match=r"outside 0.3 to 1"):
            Near(wrong)


def test_largest_groups_are_reported() -> None:
    rows = rows_with(["b", "a", "b", "c", "b", "a"])
    found = largest_groups(rows, group_rows(rows))
    assert [(n, prompt) for _, n, prompt in found] == [(3, "b"), (2, "a")]


@pytest.mark.parametrize(
    "twin",
    [
        "Caf\u00e9  AU lait",
        "cafe\u0301 au\u00a0lait",
        "\uff23\uff21\uff26\u00c9\nau lait",
        "ca\u00adf\u00e9 au\u200b lait\ufeff",
    ],
)
def test_what_looks_the_same_is_the_same(twin: str) -> None:
    one, other = group_prompts([["caf\u00e9 au lait"], [twin]])
    assert one == other
