"""PandaLM's test set: an instruction, two responses, and the votes of several annotators."""

from __future__ import annotations

import re

import numpy as np

from data.classes import PREFERENCE
from data.errors import UserError, brief
from data.labels import cell_text
from data.schema import Rows, make_rows
from data.sources.clean import TIED_VOTES, clean_turns
from data.sources.formats import source_format
from data.sources.open import Columns
from data.sources.place import Place, require

PANDALM_VOTES = {"0": 2, "1": 0, "2": 1}
"""PandaLM writes 0 for a tie, 1 and 2 for the better response; ours are A wins, B wins, tie."""


COLUMNS = ["idx", "instruction", "response1", "response2"]


@source_format("pandalm", lambda table: set(COLUMNS) <= set(table.names))
def read_pandalm(columns: Columns, place: Place) -> Rows:
    """Read PandaLM's test set: instruction and input make the prompt, the annotators' votes the label.

    The label is the majority's, a tie where there is none; ``label_probs`` holds the shares of the votes.
    """
    where, cleaning = place.where, place.cleaning
    require(columns, COLUMNS, where)
    ids = place.ids(columns["idx"])
    out: Columns = {**place.begin(ids), "prompt": []}
    inputs = columns.get("input", [None] * len(ids))
    for key, instruction, given in zip(ids, columns["instruction"], inputs, strict=True):
        turns = clean_turns(instruction, cleaning, f"{where}: row {key}, column instruction")
        extra = clean_turns("" if given is None else given, cleaning, f"{where}: row {key}, column input")
        out["prompt"].append(["\n\n".join(text for text in turns + extra if text.strip())])
    for name, theirs in (("response_a", "response1"), ("response_b", "response2")):
        out[name] = place.turns(columns, ids, theirs)
    annotators = sorted(name for name in columns if re.fullmatch(r"annotator\d+", name))
    if annotators:
        votes = np.zeros((len(ids), PREFERENCE.n))
        for name in annotators:
            for i, vote in enumerate(columns[name]):
                if cell_text(vote) not in PANDALM_VOTES:
                    raise UserError(
                        f"{where}: row {ids[i]}, column {name} holds {brief(vote)}; a vote is 0 (tie), 1 or 2"
                    )
                votes[i, PANDALM_VOTES[str(cell_text(vote))]] += 1
        majority = votes.max(axis=1) * 2 > len(annotators)
        cleaning.note(TIED_VOTES, int((~majority).sum()))
        out["label"] = np.where(majority, votes.argmax(axis=1), 2).tolist()
        out["label_probs"] = (votes / len(annotators)).tolist()
    if "cmp_key" in columns:  # "<first model>_<second model>"
        parts = [str(key).split("_") for key in columns["cmp_key"]]
        pairs = [part if len(part) == 2 else (None, None) for part in parts]  # a name with an underscore
        place.copy_models({"model_a": [a for a, _ in pairs], "model_b": [b for _, b in pairs]}, out)
    return make_rows(out, PREFERENCE, where)
