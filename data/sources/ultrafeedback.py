"""UltraFeedback: rated completions of one instruction, or a chosen and a rejected one, which become pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from data.classes import PREFERENCE
from data.errors import UserError, brief
from data.schema import Rows, make_rows
from data.sources.clean import RATED_TIES, UNPAIRED
from data.sources.formats import SourceOptions, source_format
from data.sources.messages import read_content, read_turns
from data.sources.open import Columns, Table
from data.sources.place import Place, is_turned, require


def is_ultrafeedback(table: Table) -> bool:
    """Whether columns are those of one of its two layouts: rated completions, or a chosen and a rejected."""
    names = set(table.names)
    return {"instruction", "completions"} <= names or {"chosen", "rejected", "score_chosen"} <= names


@source_format("ultrafeedback", is_ultrafeedback, takes=("margin",))
class UltraFeedbackReader:
    """Makes pairs of rated completions.

    Every two completions of an instruction are a pair; the higher rating wins, and ratings that differ
    by no more than ``margin`` are a tie. Which of the two is response A follows from a hash of the
    pair's id: in the binarized layout the chosen one always stands first, which a model would learn.

    Parameters
    ----------
    table : Table
    where : str
        The source, for messages.
    options : SourceOptions
        Its ``margin`` is the largest difference of ratings that is still a tie.
    """

    def __init__(self, table: Table, where: str, options: SourceOptions) -> None:
        margin = options.margin
        if not (math.isfinite(margin) and margin >= 0):
            raise UserError(f"a margin of {margin} makes no ties; give 0 or more")
        self.margin = margin

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch, of whichever of the two layouts."""
        names = ("row_id", "prompt", "response_a", "response_b", "label", "model_a", "model_b")
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
            prompt = [read_content(instruction, place, f"{where}: row {key}, column instruction")]
            place.cleaning.note(UNPAIRED, int(len(completions) < 2))
            rated = []
            for completion in completions:
                if not isinstance(completion, dict) or "response" not in completion:
                    raise UserError(f"{where}: row {key} has a completion without response")
                text = read_content(completion["response"], place, f"{where}: row {key}, column completions")
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
                questions, answers = read_turns(columns[name][i], place, f"row {key}, column {name}")
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
        if is_turned(key):
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
