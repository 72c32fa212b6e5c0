"""Rows become segments; swapping exchanges exactly the two responses."""

from data.template import Template

TURNS = (["Hi", None], ["one"], ["two", "three"])


def texts(**options):
    return [(s.part, s.text) for s in Template().segments(*TURNS, **options)]


def test_a_pair_is_tags_around_three_parts():
    parts = [part for part, _ in texts()]
    assert parts == ["tag", "prompt", "tag", "response_a", "tag", "response_b", "tag"]


def test_null_turns_count_as_empty_and_turns_are_joined():
    laid_out = dict(texts()[1:6:2])
    assert laid_out["prompt"] == "Hi\n"
    assert laid_out["response_b"] == "two\nthree"


def test_swap_exchanges_the_responses_and_nothing_else():
    plain, swapped = texts(), texts(swap=True)
    assert swapped[3][1] == plain[5][1]
    assert swapped[5][1] == plain[3][1]
    assert [plain[i] for i in (0, 1, 2, 4, 6)] == [swapped[i] for i in (0, 1, 2, 4, 6)]


def test_a_plain_text_row_is_its_prompt_alone():
    assert texts(pair=False) == [("prompt", "Hi\n")]
