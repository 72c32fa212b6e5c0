"""Rows with candidates of their own: read, checked, hashed, encoded, kept as soft labels."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv
from small_tokenizers import small_tokenizer

from data.candidates import ABSENT, set_rows
from data.classes import PREFERENCE, Classes, place_classes
from data.classroom import simulate_classroom
from data.dataset import check_prepared, load_prepared
from data.encoding.encode import Encoder, Truncation, candidate_rows
from data.encoding.lengths import cuts, measure
from data.encoding.show import explain
from data.encoding.template import Template
from data.errors import UserError
from data.files import write_parquet
from data.prepare import prepare_rows
from data.schema import describe_file, make_rows, read_rows, write_rows
from data.softlabels import CONTENT, MADE_BY, SoftLabels, read_logits, write_logits
from data.softmax import softmax
from data.sources.formats import SourceOptions
from data.sources.misconceptions import sets_of
from data.sources.read import read_source

COLUMNS = {
    "row_id": ["a", "b", "c"],
    "prompt": [["one"], ["two"], ["three", "turns"]],
    "candidates": [["x", "y"], ["x", "z", "w"], ["q", "r"]],
    "label": [1, 2, None],
}


def rows_of(**changes):
    return make_rows(COLUMNS | changes, place_classes(3), "here")


def classroom(tmp_path, n=80, questions=4, seed=0):
    path = tmp_path / "train.csv"
    csv.write_csv(simulate_classroom(n, questions, seed), path)
    return path


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_softmax_over_a_line_is_that_over_the_set(sets):
    sizes = np.array([len(own) for own in sets])
    values = np.array([value for own in sets for value in own])
    laid = set_rows(values, sizes, 7, ABSENT)
    for line, own in zip(softmax(laid), sets, strict=True):
        np.testing.assert_allclose(line[: len(own)], softmax(own), rtol=1e-12)
        assert (line[len(own) :] == 0).all()


def test_targets_are_zero_where_a_row_has_no_candidate():
    rows = rows_of(label_probs=[None, [0.5, 0.25, 0.25], None])
    assert rows.sizes.tolist() == [2, 3, 2]
    np.testing.assert_array_equal(rows.targets[:2], [[0, 1, 0], [0.5, 0.25, 0.25]])
    assert np.isnan(rows.targets[2]).all()
    soft = rows_of(label_probs=[[0.25, 0.75], None, None]).targets
    np.testing.assert_array_equal(soft[0], [0.25, 0.75, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": [["x"], ["x", "z"], ["q", "r"]], "label": [0, 0, 0]}, "row a has 1 candidates"),
        ({"candidates": [["x", "x"], ["x", "z"], ["q", "r"]], "label": [0, 0, 0]}, "candidate x twice"),
        ({"candidates": [["x", " "], ["x", "z"], ["q", "r"]], "label": [0, 0, 0]}, "row a has an empty cand"),
        ({"label": [2, 0, 0]}, "row a has label 2, which is no place among its 2 candidates"),
        ({"candidates": [["x", "y"], list("abcd"), ["q", "r"]]}, "row b has 4 candidates, and the table's"),
        ({"label_probs": [[0.2, 0.3, 0.5], None, None]}, "row a has label_probs .* not 2 non-negative"),
    ],
)
def test_a_set_that_cannot_be_is_refused_by_its_row(changes, message):
    with pytest.raises(UserError, match=message):
        rows_of(**changes)


def test_classes_say_what_a_head_gives_and_what_they_suit():
    assert (place_classes(3).outputs, PREFERENCE.outputs) == (1, 3)
    assert place_classes(3).suit(place_classes(9))
    assert not place_classes(3).suit(Classes(place_classes(3).names))
    assert not PREFERENCE.suit(place_classes(3))


def test_a_table_on_disk_keeps_its_candidates_and_the_hash_covers_them(tmp_path):
    rows = rows_of()
    write_rows(tmp_path / "rows.parquet", rows)
    back = read_rows(tmp_path)
    assert back.classes == rows.classes
    assert back.candidates == COLUMNS["candidates"]
    assert back.content_hash == rows.content_hash == describe_file(tmp_path / "rows.parquet")[2]
    turned = rows_of(candidates=[["y", "x"], *COLUMNS["candidates"][1:]])
    assert turned.content_hash != rows.content_hash
    # A column of that name in a table whose rows share their classes is somebody else's.
    other = make_rows(COLUMNS | {"label": [0, 1, 0]}, Classes(("no", "yes")), "here")
    assert not other.classes.candidates
    assert other.sizes is None


def test_a_table_is_read_with_labels_as_texts_or_places(tmp_path):
    lines = [
        {"id": "a", "question": "1+1?", "candidates": ["2", "3"], "label": "2"},  # a text, though a number
        {"id": "b", "question": "sky?", "candidates": ["blue", "red", "green"], "label": 0},
        {"id": "c", "question": "sea?", "candidates": ["wet", "dry"], "label": None},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    rows, _ = read_source(str(path))
    assert rows.labels.tolist() == [0, 0, -1]
    assert rows.classes == place_classes(3)
    table = pa.table(
        {
            "id": [line["id"] for line in lines],
            "question": [line["question"] for line in lines],
            "candidates": [json.dumps(line["candidates"]) for line in lines],
            "label": ["2", "blue", ""],
        }
    )
    csv.write_csv(table, tmp_path / "t.csv")
    again, _ = read_source(str(tmp_path / "t.csv"), SourceOptions(name="t.jsonl"))
    assert again.content_hash == rows.content_hash


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("purple", r"row b has label purple, none of its 3 candidates \(blue, red, green\)"),
        (3, "row b has label 3, none of its 3 candidates"),
        (2, "none is 0, so that nothing shows whether they count"),
    ],
)
def test_a_label_that_is_no_candidate_is_refused(tmp_path, label, message):
    path = tmp_path / "t.json"
    rows = [
        {"id": "a", "prompt": "p", "candidates": ["u", "v"], "label": 0 if label == 3 else 1},
        {"id": "b", "prompt": "q", "candidates": ["blue", "red", "green"], "label": label},
    ]
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message):
        read_source(str(path))


def test_a_list_that_is_none_is_refused_and_other_columns_of_that_name_are_left_alone(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("""id,prompt,candidates,label\na,p,"['u', 'v']",u\n""")
    with pytest.raises(UserError, match=r"row a, column candidates holds .* where a list of texts, in JSON"):
        read_source(str(path))
    path.write_text("id,prompt,candidates,label\na,p,3,yes\nb,q,4,no\n")
    rows, _ = read_source(str(path))
    assert rows.classes == Classes(("no", "yes"))


def test_soft_labels_of_a_table_are_as_long_as_each_set(tmp_path):
    path = tmp_path / "t.json"
    lines = [
        {"id": "a", "prompt": "p", "candidates": ["u", "v"], "label_probs": [0.25, 0.75]},
        {"id": "b", "prompt": "q", "candidates": ["u", "v", "w"], "label_probs": [0.5, 0.25, 0.25]},
    ]
    path.write_text(json.dumps(lines))
    np.testing.assert_allclose(read_source(str(path))[0].targets, [[0.25, 0.75, 0], [0.5, 0.25, 0.25]])


def test_map_rows_have_the_labels_of_their_question(tmp_path):
    path = classroom(tmp_path)
    table = simulate_classroom(80, 4, 0).to_pylist()
    rows, _ = read_source(str(path))
    wanted: dict[str, set[str]] = {}
    for line in table:
        label = f"{line['Category']}:{line['Misconception'] or 'NA'}"
        wanted.setdefault(line["QuestionId"], set()).add(label)
    assert {q: sorted(own) for q, own in wanted.items()} == dict(sets_of(rows))
    for line, own, label in zip(table, rows.candidates, rows.labels, strict=True):
        assert own[label] == f"{line['Category']}:{line['Misconception'] or 'NA'}"
    assert len(set(map(len, rows.candidates))) > 1


def test_unlabelled_map_rows_have_their_questions_candidates_too(tmp_path):
    table = simulate_classroom(80, 4, 0).to_pylist()
    for line in table[60:]:
        line["Category"] = line["Misconception"] = ""
    csv.write_csv(pa.Table.from_pylist(table), tmp_path / "t.csv")
    rows, _ = read_source(str(tmp_path / "t.csv"))
    assert (rows.labels[60:] == -1).all()
    assert (rows.labels[:60] >= 0).all()
    sets = sets_of(rows)
    bare = pa.Table.from_pylist(table[60:]).drop_columns(["Category", "Misconception"])
    csv.write_csv(bare, tmp_path / "bare.csv")
    fresh, _ = read_source(str(tmp_path / "bare.csv"), SourceOptions(sets=sets))
    assert fresh.candidates == rows.candidates[60:]
    with pytest.raises(UserError, match="holds no labelled row, so that no question has candidates"):
        read_source(str(tmp_path / "bare.csv"))
    first = table[60]["QuestionId"]
    known = {q: own for q, own in sets.items() if q != first}
    with pytest.raises(UserError, match=f"row 60 is of question {first}, of which no row is labelled"):
        read_source(str(tmp_path / "bare.csv"), SourceOptions(sets=known))


def test_a_question_of_one_label_is_refused(tmp_path):
    table = simulate_classroom(6, 1, 0).to_pylist()
    for line in table:
        line["Category"], line["Misconception"] = "True_Correct", ""
    csv.write_csv(pa.Table.from_pylist(table), tmp_path / "t.csv")
    with pytest.raises(UserError, match="has no other label than True_Correct:NA"):
        read_source(str(tmp_path / "t.csv"))


def test_prepared_rows_pass_their_check_and_copies_that_contradict_become_soft(tmp_path):
    table = simulate_classroom(60, 3, 0).to_pylist()
    copy = dict(table[0], row_id="copy")
    other = next(
        line for line in table if line["QuestionId"] == copy["QuestionId"]
        and (line["Category"], line["Misconception"]) != (copy["Category"], copy["Misconception"])
    )  # fmt: skip
    copy["Category"], copy["Misconception"] = other["Category"], other["Misconception"]
    csv.write_csv(pa.Table.from_pylist([*table, copy]), tmp_path / "t.csv")
    prepare_rows(tmp_path / "t.csv", tmp_path / "out", folds=3)
    _, _, manifest = check_prepared(tmp_path / "out")
    rows, folds = load_prepared(tmp_path / "out")
    assert manifest["candidates"]["most"] == max(map(len, rows.candidates))
    assert sorted(rows.targets[-1])[-2:] == [0.5, 0.5]
    assert rows.targets[-1][rows.sizes[-1] :].sum() == 0
    assert folds.fold[0] == folds.fold[-1]


def test_each_candidate_is_encoded_with_the_whole_prompt():
    rows = rows_of()
    tokenizer = small_tokenizer("byte_bpe")
    encoded = Encoder(tokenizer, Template(), Truncation(64)).encode(rows)
    assert encoded.sizes.tolist() == [2, 3, 2]
    texts = [tokenizer.decode(encoded[s], skip_special_tokens=True) for s in range(len(encoded.lengths))]
    assert texts[3] == "two\n\n<candidate>:\nz\n\n<verdict>:"
    assert texts[6] == "three\n\nturns\n\n<candidate>:\nr\n\n<verdict>:"
    assert encoded.of_rows(np.array([2, 0])).tolist() == [5, 6, 0, 1]
    lengths = encoded.lengths
    assert encoded.row_lengths.tolist() == [lengths[:2].sum(), lengths[2:5].sum(), lengths[5:].sum()]
    named = Encoder(tokenizer, Template("candidate"), Truncation(64)).encode(rows)
    np.testing.assert_array_equal(named.ids, encoded.ids)


def test_a_long_prompt_is_cut_and_the_candidate_is_not():
    rows = rows_of(prompt=[["word " * 300], ["two"], ["three"]])
    tokenizer = small_tokenizer("byte_bpe")
    encoded = Encoder(tokenizer, Template(), Truncation(48)).encode(rows)
    assert encoded.truncated == 2
    assert encoded.lengths[:2].tolist() == [48, 48]
    assert "<candidate>:\ny\n" in tokenizer.decode(encoded[1])


@pytest.mark.parametrize("side", ["left", "middle", "right"])
@pytest.mark.parametrize("turns", [1, 4])
def test_all_candidates_of_a_row_are_read_behind_the_same_prompt(side, turns):
    """One that is long takes of the prompt for all of them, and no more than the prompt's share leaves it."""
    own = ["x", "a long one " * 9, "y z"]
    rows = rows_of(
        prompt=[["one"], ["word " * 30] * turns, ["three"]], candidates=[["x", "y"], own, ["q", "r"]]
    )
    encoder = Encoder(small_tokenizer("byte_bpe"), Template(), Truncation(64, 0.4, side=side))
    encoded = encoder.encode(rows)
    texts = [encoder.tokenizer.decode(encoded[s], skip_special_tokens=True) for s in range(2, 5)]
    before, after = zip(*(text.split("\n\n<candidate>:\n") for text in texts), strict=True)
    assert len(set(before)) == 1
    assert "word" in before[0]
    assert (after[0], after[2]) == ("x\n\n<verdict>:", "y z\n\n<verdict>:")
    assert encoded.lengths[2:5].max() == 64
    assert encoded.truncated == 3
    wide = candidate_rows(rows)
    tokens, sizes = encoder.tokenize(wide), rows.sizes
    for s in range(7):
        pieces, _ = explain(encoder, tokens, s, False, sizes)
        np.testing.assert_array_equal(np.concatenate([piece.ids for piece in pieces]), encoded[s])
    lengths = measure(encoder, tokens, False, sizes)
    ((_, cut, lost),) = cuts(encoder, tokens, lengths, False, [64])
    assert cut == encoded.truncated / 7 == lengths.cut(64)
    assert lost == pytest.approx(1 - encoded.lengths.sum() / lengths.rows.sum())


def test_a_candidate_that_is_too_long_beside_a_short_prompt_is_cut_alone():
    rows = rows_of(candidates=[["x", "long " * 90], ["x", "z", "w"], ["q", "r"]])
    encoded = Encoder(small_tokenizer("byte_bpe"), Template(), Truncation(64)).encode(rows)
    assert encoded.truncated == 1
    assert encoded.lengths[1] == 64


def test_templates_of_pairs_are_refused_and_own_ones_have_the_candidate():
    encoder = Encoder(small_tokenizer("byte_bpe"), Template("notebook"), Truncation(64))
    with pytest.raises(UserError, match="template notebook lays out pairs, and these rows have candidates"):
        encoder.encode(rows_of())
    own = Template("own", "{{ prompts | join(' ') }} => {{ candidate }}?")
    tokenizer = small_tokenizer("byte_bpe")
    encoded = Encoder(tokenizer, own, Truncation(64)).encode(rows_of())
    assert tokenizer.decode(encoded[0], skip_special_tokens=True) == "one => x?"
    without = Encoder(tokenizer, Template("own", "{{ prompts | join(' ') }}"), Truncation(64))
    with pytest.raises(
        UserError, match="template own: puts candidate nowhere; every turn of prompts and cand"
    ):
        without.encode(rows_of())
    wide = candidate_rows(rows_of())
    assert wide.table.column("response_a").to_pylist()[1] == ["y"]


def test_soft_labels_come_back_a_line_a_candidate(tmp_path):
    rows = rows_of()
    logits = set_rows(np.arange(7, dtype=np.float32), rows.sizes, 3, ABSENT)[:, None]
    path, manifest = tmp_path / "oof.parquet", {"backbone": "x"}
    write_logits(path, rows.row_ids, np.array([0, 1, 0]), logits, rows.classes, manifest, rows.candidates)
    ids, fold, back = read_logits(path, rows.classes, manifest)
    assert ids == rows.row_ids
    assert fold.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(back, logits)
    store = SoftLabels(ids, fold, back, rows.classes, manifest, path, rows.candidates)
    frame = store.table.to_pandas()
    assert frame.candidate.tolist() == [name for own in rows.candidates for name in own]
    np.testing.assert_allclose(frame.groupby("row_id").probability.sum(), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.set_column(2, "candidate", pa.array(["x", "x", "x", "z", "w", "q", "r"])), "each once"),
        (lambda t: t.take([0, 2, 1, 3, 4, 5, 6]), "appear more than once.*stand together"),
        (lambda t: t.set_column(1, "fold", pa.array([0, 1, 1, 1, 1, 0, 0], pa.int32())), "in two folds"),
        (lambda t: t.drop_columns(["candidate"]), "candidate"),
        (lambda t: t.set_column(3, "logit", pa.array([np.nan] * 7, pa.float32())), "not finite"),
        (lambda t: t.set_column(2, "candidate", pa.array(["y", "x", *"xzwqr"])), "is not as it was written"),
    ],
)
def test_a_damaged_file_of_soft_labels_is_refused(tmp_path, change, message):
    rows = rows_of()
    path, manifest = tmp_path / "oof.parquet", {"backbone": "x"}
    logits = np.zeros((3, 1, 3), np.float32)
    write_logits(path, rows.row_ids, np.array([0, 1, 0]), logits, rows.classes, manifest, rows.candidates)
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    marks = {key: table.schema.metadata[key] for key in (MADE_BY, CONTENT)}
    write_parquet(path, change(table).replace_schema_metadata(marks))
    with pytest.raises(UserError, match=message):
        read_logits(path, rows.classes, manifest)
