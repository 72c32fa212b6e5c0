"""The LMArena sets of human preference (100k and 140k, and the older ones of that layout).

Each row holds one conversation a model as a list of messages, and a winner.
"""

from __future__ import annotations

from data.classes import PREFERENCE
from data.errors import UserError, brief
from data.labels import BOTH_BAD as BOTH_BAD_NAMES
from data.labels import cell_text, winner_index
from data.schema import Rows, make_rows
from data.sources.clean import BOTH_BAD
from data.sources.formats import source_format
from data.sources.messages import read_turns
from data.sources.open import Columns
from data.sources.place import Place, require

CONVERSATIONS = ["conversation_a", "conversation_b"]


@source_format("lmarena", lambda table: set(CONVERSATIONS) <= set(table.names))
def read_lmarena(columns: Columns, place: Place) -> Rows:
    """Read conversations of two models and a ``winner``; a verdict that both are bad is a tie.

    Which of the ties were "both bad" is kept in the column ``both_bad``.
    """
    where = place.where
    id_column = "question_id" if "question_id" in columns else "id"
    require(columns, [id_column, *CONVERSATIONS], where)
    ids = place.ids(columns[id_column])
    out = place.begin(ids)
    out |= {"prompt": [], "response_a": [], "response_b": []}
    for i, key in enumerate(ids):
        prompt, first = read_turns(columns["conversation_a"][i], place, f"row {key}, column conversation_a")
        same, second = read_turns(columns["conversation_b"][i], place, f"row {key}, column conversation_b")
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
        out["label"] = [winner_index(value, 3, key, where) for key, value in zip(ids, verdicts, strict=True)]
        out["both_bad"] = [cell_text(value) in BOTH_BAD_NAMES for value in verdicts]
        place.cleaning.note(BOTH_BAD, sum(out["both_bad"]))
    place.copy_models(columns, out)
    return make_rows(out, PREFERENCE, where)
