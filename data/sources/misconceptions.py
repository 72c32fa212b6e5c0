"""Students' misconceptions: the layout of Kaggle's MAP, Charting Student Math Misunderstandings.

A row is a question, the answer that a student chose and what the student wrote of it; the label is
``Category:Misconception``, the latter NA where there is none. A question only ever has some of all labels:
its candidates are those seen in the labelled rows of the source, sorted, and its unlabelled rows have them,
too. Rows to predict may come in a file of their own: a trained model knows the questions' candidates.

The candidates are drawn from labelled rows of every fold, so that the right one is always among them; of new
rows that is not so, by as much as there are labels that a question has never had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.candidates import CANDIDATES
from data.classes import place_classes
from data.errors import UserError, brief, listing
from data.labels import cell_text, is_missing
from data.schema import Rows, make_rows
from data.sources.clean import clean_text
from data.sources.formats import SourceOptions, source_format
from data.sources.open import Columns, Table
from data.sources.place import Place, require

TEXTS = ("QuestionText", "MC_Answer", "StudentExplanation")
COLUMNS = ("row_id", "QuestionId", *TEXTS)
QUESTION = "question_id"
"""Column of the row table: a row's question."""
NO_MISCONCEPTION = "NA"
UNSEEN = "labels that their question's candidates lack, read as missing"


def is_map(table: Table) -> bool:
    """Whether columns are those of this format."""
    return set(COLUMNS) <= set(table.names)


@source_format("map", is_map)
class MapReader:
    """Reads MAP's layout.

    Attributes
    ----------
    sets : dict of str to list of str
        Candidates by question.
    """

    def __init__(self, table: Table, where: str, options: SourceOptions) -> None:
        require(table.names, list(COLUMNS), where)
        seen: dict[str, set[str]] = {}
        for batch in table.batches():
            if "Category" in batch:
                for question, label in zip(_questions(batch), _labels(batch), strict=True):
                    if label is not None:
                        seen.setdefault(question, set()).add(label)
        self.sets = {question: sorted(labels) for question, labels in seen.items()}
        self.sets |= {question: list(known) for question, known in options.sets.items()}
        few = [question for question, labels in self.sets.items() if len(labels) < 2]
        if few:
            raise UserError(
                f"{where}: question {brief(few[0])} has no other label than {self.sets[few[0]][0]}, and a "
                "row needs two candidates or more; leave its rows out"
            )
        if not self.sets:
            raise UserError(
                f"{where}: holds no labelled row, so that no question has candidates; prepare it together "
                "with labelled rows, in one file, or predict it with a model trained on such"
            )
        self.classes = place_classes(max(map(len, self.sets.values())))

    def __call__(self, columns: Columns, place: Place) -> Rows:
        """Read one batch."""
        where = place.where
        ids, questions = place.ids(columns["row_id"]), _questions(columns)
        out = place.begin(ids)
        out[QUESTION] = questions
        texts = zip(ids, *(columns[name] for name in TEXTS), strict=True)
        out["prompt"] = [
            [f"Question: {question}\nAnswer: {answer}", f"Explanation: {explanation}"]
            for question, answer, explanation in (_texts(cells, key, place) for key, *cells in texts)
        ]
        unknown = next((i for i, question in enumerate(questions) if question not in self.sets), None)
        if unknown is not None:
            raise UserError(
                f"{where}: row {ids[unknown]} is of question {brief(questions[unknown])}, of which no row is "
                f"labelled, so that it has no candidates; those known are {listing(self.sets)}"
            )
        out[CANDIDATES] = [self.sets[question] for question in questions]
        if "Category" in columns:
            both = list(zip(_labels(columns), out[CANDIDATES], strict=True))
            out["label"] = [own.index(label) if label in own else None for label, own in both]
            place.cleaning.note(UNSEEN, sum(label not in (None, *own) for label, own in both))
        return make_rows(out, self.classes, where)


def sets_of(rows: Rows) -> Mapping[str, Sequence[str]]:
    """Candidates by question, of rows that name their questions; empty of others."""
    if not rows.classes.candidates or QUESTION not in rows.table.column_names:
        return {}
    return dict(zip(rows.table.column(QUESTION).to_pylist(), rows.candidates, strict=True))


def _questions(columns: Columns) -> list[str]:
    return [cell_text(cell) or "" for cell in columns["QuestionId"]]


def _labels(columns: Columns) -> list[str | None]:
    """``Category:Misconception`` of each row; none where the category is empty."""
    blank = [None] * len(columns["Category"])
    pairs = zip(columns["Category"], columns.get("Misconception", blank), strict=True)
    found: list[str | None] = []
    for category, misconception in pairs:
        what, why = cell_text(category), cell_text(misconception)
        why = NO_MISCONCEPTION if is_missing(why) else why
        found.append(None if is_missing(what) else f"{what}:{why}")
    return found


def _texts(cells: Sequence[object], row_id: str, place: Place) -> list[str]:
    texts = []
    for name, cell in zip(TEXTS, cells, strict=True):
        text = None if cell is None else str(cell)
        texts.append(clean_text(text, place.cleaning, f"{place.where}: row {row_id}, column {name}"))
    return texts
