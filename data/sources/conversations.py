"""Readers of sets that hold whole conversations, or ratings instead of votes.

The LMArena sets of human preference (100k and 140k, and the older ones of that layout) hold one
conversation a model as a list of messages; UltraFeedback holds several rated completions of one
instruction, or a chosen and a rejected one, which become pairs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import combinations

from data.errors import UserError, brief
from data.schema import PREFERENCE, Rows, make_rows
from data.sources.clean import BOTH_BAD, IMAGES, RATED_TIES, UNANSWERED, UNPAIRED, clean_text
from data.sources.layouts import WINNERS, Place, cell_text, require, winner_index
from data.sources.open import Columns

BOTH_BAD_NAMES = ("tie (bothbad)", "both_bad", "bothbad")
ARENA_WINNERS = {**WINNERS, "tie": 2, **dict.fromkeys(BOTH_BAD_NAMES, 2)}


def read_arena(columns: Columns, place: Place) -> Rows:
    """Read conversations of two models and a ``winner``; a verdict that both are bad is a tie.

    Which of the ties were "both bad" is kept in the column ``both_bad``.
    """
    where = place.where
    id_column = "question_id" if "question_id" in columns else "id"
    require(columns, [id_column, "conversation_a", "conversation_b"], where)
    ids = place.ids(columns[id_column])
    out = place.begin(ids)
    out |= {"prompt": [], "response_a": [], "response_b": []}
    for i, key in enumerate(ids):
        prompt, first = _turns(columns["conversation_a"][i], place, f"row {key}, column conversation_a")
        same, second = _turns(columns["conversation_b"][i], place, f"row {key}, column conversation_b")
        if prompt != same:
            raise UserError(
                f"{where}: row {key} asks the two models different questions "
                f"({brief(prompt, 60)} and {brief(same, 60)}); a pair answers one prompt"
            )
        out["prompt"].append(prompt)
        out["response_a"].append(first)
        out["response_b"].append(second)
    if "winner" in columns:
        verdicts = columns["winner"]
        out["label"] = [
            winner_index(value, ARENA_WINNERS, key, where) for key, value in zip(ids, verdicts, strict=True)
        ]
        out["both_bad"] = [cell_text(value) in BOTH_BAD_NAMES for value in verdicts]
        place.cleaning.note(BOTH_BAD, sum(out["both_bad"]))
    place.copy_models(columns, out)
    return make_rows(out, PREFERENCE, where)


def _turns(cell: object, place: Place, at: str) -> tuple[list[str], list[str]]:
    """Split a conversation into its questions and its answers, one each a turn."""
    where = f"{place.where}: {at}"
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not a JSON list of messages ({brief(error)})") from error
    if not isinstance(cell, Sequence) or not cell:
        raise UserError(f"{where} holds {brief(cell, 40)} where a list of messages was expected")
    questions: list[str] = []
    answers: list[list[str]] = []
    opening = ""
    for message in cell:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(f"{where} holds {brief(message, 40)}, not a message with role and content")
        text = _content(message["content"], place, where)
        role = message["role"]
        if role == "user":
            questions.append(opening + text)
            answers.append([])
            opening = ""
        elif role == "assistant" and answers:
            answers[-1].append(text)
        elif role == "system":
            opening += text + "\n\n"
        else:
            raise UserError(f"{where} has a message of role {brief(role, 40)!r} out of turn")
    if opening or not questions:
        raise UserError(f"{where} has no question, or a system message after the last; each turn needs one")
    place.cleaning.note(UNANSWERED, sum(not answer for answer in answers))
    return questions, ["\n\n".join(answer) for answer in answers]


def _content(content: object, place: Place, where: str) -> str:
    """The text of a message: a text, one part, or a list of parts, of which images are left out."""
    if content is None or isinstance(content, str):
        return clean_text(content, place.cleaning, where)
    parts = content if isinstance(content, Sequence) else [content]
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not ({"text", "image"} & part.keys()):
            raise UserError(f"{where} has content {brief(part, 40)}, neither text nor parts with text")
        if part.get("text") is None:
            place.cleaning.note(IMAGES)
            continue
        if not isinstance(part["text"], str):
            raise UserError(f"{where} has content {brief(part, 40)}, whose text is not text")
        texts.append(clean_text(part["text"], place.cleaning, where))
    return "\n".join(texts)


class UltraFeedbackReader:
    """Makes pairs of rated completions.

    Every two completions of an instruction are a pair; the higher rating wins, and ratings that differ
    by no more than ``margin`` are a tie. Which of the two is response A follows from a hash of the
    pair's id: in the binarized layout the chosen one always stands first, which a model would learn.

    Parameters
    ----------
    margin : float
        Largest difference of ratings that is still a tie.
    """

    def __init__(self, margin: float) -> None:
        if not (math.isfinite(margin) and margin >= 0):
            raise UserError(f"a margin of {margin} makes no ties; give 0 or more")
        self.margin = margin

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch, of whichever of the two layouts."""
        names: tuple[str, ...] = (
            "row_id",
            "prompt",
            "response_a",
            "response_b",
            "label",
            "model_a",
            "model_b",
        )
        out: Columns = {name: [] for name in names}
        rated = self._binarized if "chosen" in columns else self._completions
        rated(columns, place, out)
        if not out["row_id"]:
            raise UserError(f"{place.where}: no instruction of it has two completions to compare")
        return make_rows({**out, "source": [place.name] * len(out["row_id"])}, PREFERENCE, place.where)

    def _completions(self, columns: Columns, place: Place, out: Columns) -> None:
        where = place.where
        require(columns, ["instruction", "completions"], where)
        for i, (instruction, completions) in enumerate(
            zip(columns["instruction"], columns["completions"], strict=True)
        ):
            key = str(place.start + i)
            if not isinstance(completions, Sequence) or isinstance(completions, str):
                raise UserError(f"{where}: row {key}, column completions holds {brief(completions, 40)}")
            prompt = [_content(instruction, place, f"{where}: row {key}, column instruction")]
            place.cleaning.note(UNPAIRED, int(len(completions) < 2))
            rated = []
            for completion in completions:
                if not isinstance(completion, dict) or "response" not in completion:
                    raise UserError(f"{where}: row {key} has a completion without response")
                text = _content(completion["response"], place, f"{where}: row {key}, column completions")
                rating = _rating(completion.get("overall_score", completion.get("score")), key, where)
                model = place.model_name(completion.get("model"), key, "completions")
                rated.append((text, rating, model))
            for (j, one), (k, two) in combinations(enumerate(rated), 2):
                self._add(f"{key}-{j}-{k}", prompt, one, two, place, out)

    def _binarized(self, columns: Columns, place: Place, out: Columns) -> None:
        where = place.where
        require(columns, ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"], where)
        n = len(columns["prompt"])
        ids = place.ids(columns["prompt_id"]) if "prompt_id" in columns else None
        for i in range(n):
            key = ids[i] if ids else str(place.start + i)
            sides = []
            for name in ("chosen", "rejected"):
                questions, answers = _turns(columns[name][i], place, f"row {key}, column {name}")
                rating = _rating(columns[f"score_{name}"][i], key, where)
                sides.append((questions, (answers[-1], rating, None), answers[:-1]))
            (asked, one, earlier), (same, two, others) = sides
            if asked != same or earlier != others:
                raise UserError(f"{where}: row {key}: chosen and rejected answer different conversations")
            history = [text for turn in zip(asked, earlier, strict=False) for text in turn]
            self._add(key, ["\n\n".join([*history, asked[-1]])], one, two, place, out)

    def _add(
        self,
        key: str,
        prompt: list[str],
        one: tuple[str, float, str | None],
        two: tuple[str, float, str | None],
        place: Place,
        out: Columns,
    ) -> None:
        if hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[0] & 1:
            one, two = two, one
        difference = one[1] - two[1]
        tie = abs(difference) <= self.margin
        place.cleaning.note(RATED_TIES, int(tie))
        values = (key, prompt, [one[0]], [two[0]], 2 if tie else int(difference < 0), one[2], two[2])
        for name, value in zip(out, values, strict=True):
            out[name].append(value)


def _rating(value: object, key: str, where: str) -> float:
    try:
        rating = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rating = math.nan
    if not math.isfinite(rating):
        raise UserError(f"{where}: row {key} has the rating {brief(value, 40)}, not a number")
    return rating
