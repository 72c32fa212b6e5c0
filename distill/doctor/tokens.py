"""Checks of what the model reads: start and end tokens, padding, special tokens in text, truncation."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from data.candidates import CANDIDATES
from data.classes import PREFERENCE, Classes, place_classes
from data.encoding.encode import Encoder, Truncation, opens_turns, pad_token_id, tokenizer_hash
from data.encoding.plain_text import special_ids
from data.encoding.template import Template, recorded_template
from data.schema import Rows, make_rows
from distill.doctor.finding import Finding, check, failed, passed, warned
from distill.doctor.small import TEXT
from distill.doctor.subject import SPECIAL_IDS, Subject, read_ids

FEW_ROWS = 24
EMPTY = np.zeros(0, dtype=np.uint32)
BOS_COST = "a different model: about 6 % of MMLU came back after a fix (retaining-by-doing #5)"
TRUNCATED_SHARE = 0.25
CONVERSATION = [{"role": "user", "content": "Hello"}]


def sample_rows(classes: Classes = PREFERENCE, exchanged: bool = False) -> Rows:
    """Return a few rows of the kind of ``classes``, one longer than any truncation; see :func:`rows_like`."""
    long = " ".join(f"word{i % 97}" for i in range(9000))
    columns: dict[str, list] = {
        "row_id": ["a", "b", "c", "long"],
        "prompt": [["What is 2 + 2?"], ["Name a colour."], ["Say hello.", "And goodbye."], ["Go on."]],
        "response_a": [["It is 4."], ["Blue, of course, as the sky is."], ["Hello!", "Goodbye!"], [long]],
        "response_b": [["Perhaps 5, who knows?"], ["Red."], ["Hi.", "Bye."], [long + " end"]],
    }
    if exchanged:
        columns["response_a"], columns["response_b"] = columns["response_b"], columns["response_a"]
    return rows_like(classes, columns)


def rows_like(classes: Classes, columns: dict[str, list]) -> Rows:
    """Make unlabelled pairs, or of their texts what is read as these classes are: plain texts, or candidates.

    Parameters
    ----------
    columns : dict of str to list
        ``row_id``, ``prompt``, ``response_a`` and ``response_b``; the responses' last turns are candidates.
    """
    own = {name: columns[name] for name in ("row_id", "prompt")}
    responses = (columns["response_a"], columns["response_b"])
    if classes.candidates:
        sets = [[a[-1], b[-1]] for a, b in zip(*responses, strict=True)]
        return make_rows({**own, CANDIDATES: sets}, place_classes(2), "sample")
    return make_rows(own if classes.swap is None else columns, classes, "sample")


def encoder_of(subject: Subject) -> Any:
    """The encoder this toolkit would train the subject with."""
    recorded = subject.manifest["template"] if subject.manifest else None
    template = Template() if recorded is None else recorded_template(recorded, subject.run)
    return Encoder(subject.tokenizer, template, Truncation(**asdict(subject.model.encode)))


def training_ids(subject: Subject) -> list[list[int]]:
    """Token ids of training: another pipeline's where given, else those of this toolkit on sample rows."""
    if subject.ids is not None:
        return read_ids(subject.ids)
    encoded = encoder_of(subject).encode(_some_rows(subject))
    return [encoded[s].tolist() for s in range(len(encoded.lengths))]


def _some_rows(subject: Subject) -> Rows:
    rows = subject.rows
    return sample_rows(subject.classes) if rows is None else rows.take(np.arange(min(FEW_ROWS, len(rows))))


def start_id(tokenizer: Any) -> int | None:
    """Id of the token a text starts with: BOS, or an encoder's CLS."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id


def needs_no_start(subject: Subject) -> str:
    """Why a text needs no BOS, by the family's row and by its tokenizer; empty if it does."""
    tokenizer, family = subject.tokenizer, subject.family
    if family.tokens and not family.starts:
        return "texts of this family start with themselves"
    if opens_turns(tokenizer):
        return f"{tokenizer.bos_token} opens turns, not texts"
    if tokenizer.bos_token is not None and tokenizer.bos_token == tokenizer.eos_token:
        return f"{tokenizer.bos_token} is EOS, too: it parts texts"
    if subject.raw_tokenizer_config.get("add_bos_token") is False and not subject.plain:
        return "the tokenizer declares that it adds no BOS"
    return ""


@check("tokens", "tokenizer")
def one_start_token(subject: Subject) -> Finding:
    """A plain call of the tokenizer puts exactly one BOS (an encoder's CLS) at the start, if texts have one.

    Source: transformers #32172 (``[9906]`` instead of ``[128000, 9906]``), #30947.
    """
    tokenizer = subject.tokenizer
    start = start_id(tokenizer)
    wanted = getattr(subject.config, "bos_token_id", None)
    if start is None:
        if wanted is None or not subject.family.starts:
            return passed("this family has no BOS")
        return failed(
            f"config.json names BOS {wanted}, the tokenizer has none",
            BOS_COST,
            "take the model's own tokenizer",
        )
    ids = tokenizer(TEXT)["input_ids"]
    count, first = ids.count(start), ids[0] == start
    shown = f"tokenizer(text) starts {ids[:3]}, BOS is {start}"
    if count == 1 and first:
        return passed(shown)
    if count == 0 and (why := needs_no_start(subject)):
        return passed(f"{why}; {shown}")
    what = "no BOS" if count == 0 else f"{count} BOS tokens" if count > 1 else "BOS, but not first"
    return failed(
        f"{what}: {shown}",
        BOS_COST,
        "set the post-processor to one BOS (tokenizers.processors.TemplateProcessing) and save the tokenizer",
    )


@check("tokens", "tokenizer", unless=("one_start_token",))
def start_token_on_training_path(subject: Subject) -> Finding | None:
    """Every training sequence has one BOS, first, and none in mid-text where pieces were joined.

    Source: OpenRLHF #393, open-r1 #462 (double BOS); pieces tokenized apart leave one a piece.
    """
    start = start_id(subject.tokenizer)
    if start is None or (subject.is_encoder and subject.ids is None):
        return None
    rows = training_ids(subject)
    missing = sum(ids[0] != start for ids in rows)
    doubled = sum(ids[:2] == [start, start] for ids in rows)
    inside = sum(start in ids[1:] for ids in rows) - doubled
    if missing + doubled + inside == 0:
        return passed(f"one BOS, first, in {len(rows)} sequences")
    alike = missing in (0, len(rows)) and not doubled
    if alike and (not inside or opens_turns(subject.tokenizer)) and (why := needs_no_start(subject)):
        return passed(f"{why}; {len(rows)} sequences alike")
    return failed(
        f"of {len(rows)} sequences {missing} lack it, {doubled} have it twice, {inside} have it in mid-text",
        BOS_COST,
        "tokenize pieces with add_special_tokens=False and put one BOS in by id",
    )


@check("tokens", "tokenizer", unless=("one_start_token",))
def chat_template_start(subject: Subject) -> Finding | None:
    """The chat template, rendered and tokenized in one go, gives one BOS, not none and not two.

    ChatML's may open every turn, and where texts need none, none is right.

    Source: FastChat PR #3289, OpenRLHF #393.
    """
    tokenizer = subject.tokenizer
    start = tokenizer.bos_token_id
    if not tokenizer.chat_template or start is None:
        return None
    rendered = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    together = ids.count(start)
    again = tokenizer(rendered)["input_ids"].count(start)
    why = needs_no_start(subject)
    if why and (together == 0 or (opens_turns(tokenizer) and ids[:2] != [start, start])):
        return passed(f"{why}; the rendered template holds {together}")
    if together != 1:
        return failed(
            f"the rendered template holds {together} BOS",
            BOS_COST,
            "put {{ bos_token }} once at the start of the chat template",
        )
    if again != 1:
        return warned(
            f"one BOS in the template, but {again} if its text is tokenized again",
            BOS_COST,
            "use apply_chat_template(tokenize=True), or add_special_tokens=False on its text",
        )
    return passed("one BOS, also if tokenized again")


@check("tokens", "tokenizer")
def end_token_policy(subject: Subject) -> Finding:
    """EOS is added exactly where it is declared: an encoder's SEP, ``add_eos_token``, else none.

    Source: transformers #30947 and PR #31316 (``add_eos_token`` ignored by fast Llama-3 tokenizers).
    """
    tokenizer = subject.tokenizer
    last = tokenizer(TEXT)["input_ids"][-1]
    if subject.is_encoder:
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if last == end:
            return passed(f"ends in SEP {end}")
        return failed(f"ends in {last}, not in SEP {end}", "unmeasured", "restore the post-processor")
    adds = tokenizer.eos_token_id is not None and last == tokenizer.eos_token_id
    declared = bool(subject.raw_tokenizer_config.get("add_eos_token"))
    if declared and not adds:
        return failed(
            "add_eos_token is set and nothing is added",
            "training and serving disagree on the last token, the one that is pooled",
            "add EOS by id where you want it, and unset add_eos_token",
        )
    if adds:
        return warned(
            "every text ends in EOS, so a classifier pools EOS and not the verdict cue",
            "unmeasured; harmless if training and prediction both do it",
            "tokenize with add_special_tokens=False and put BOS in by id",
        )
    return passed("no EOS is added, none is declared")


@check("tokens", "tokenizer")
def pad_token(subject: Subject) -> Finding:
    """A pad token exists, in tokenizer and configuration, and it is not EOS, nor a BOS that texts start with.

    Source: transformers #35352, PR #35911: the pooled token is the rightmost that is not the pad id.
    """
    tokenizer, text = subject.tokenizer, getattr(subject.config, "pad_token_id", None)
    own, reserve = tokenizer.pad_token_id, pad_token_id(tokenizer)
    named = f"{tokenizer.convert_ids_to_tokens(reserve)!r} ({reserve})"
    remedy = (
        f"set pad_token to {named}"
        if reserve in special_ids(tokenizer)
        else "give it one of its own: tokenizer.add_special_tokens({'pad_token': '<pad>'})"
    )
    taken = {"EOS": tokenizer.eos_token_id}
    if not needs_no_start(subject):
        taken["BOS"] = tokenizer.bos_token_id
    for where, value in (("the tokenizer's", own), ("config.json's", text)):
        for name, other in taken.items():
            if value is not None and value == other:
                # So published, and harmless here: padding is with another token, pooling by explicit index.
                report = warned if own == text and not subject.plain else failed
                return report(
                    f"{where} pad token is {name} ({value})",
                    "a row that ends in EOS is pooled at another token (transformers #35352)"
                    + ("; not by this toolkit" if report is warned else ""),
                    remedy,
                )
    if own is None:
        return warned(
            "the tokenizer has no pad token",
            "plain ForSequenceClassification refuses batches, and pools wrongly with EOS as pad",
            remedy,
        )
    if text is not None and text != own:
        return failed(
            f"config.json pads with {text}, the tokenizer with {own}",
            "plain ForSequenceClassification pools at the last pad of every shorter row",
            "set config.pad_token_id to the tokenizer's",
        )
    return passed(f"{tokenizer.pad_token!r} ({own})")


@check("tokens", "tokenizer")
def special_tokens_in_text(subject: Subject) -> Finding | None:
    """Special tokens spelled out in a row's text are encoded as text on the training path.

    Source: prompt injection by ``<|eot_id|>`` or ``</s>`` in user text; tokenizers'
    ``encode_special_tokens`` covers only tokens that are flagged special.
    """
    tokenizer = subject.tokenizer
    names = [
        t for t in (*tokenizer.all_special_tokens, *map(str, tokenizer.get_added_vocab())) if t.strip("▁ ")
    ]
    markers = [t for t in dict.fromkeys(names) if t.startswith(("<", "[")) and t.endswith((">", "]"))][:300]
    if not markers:
        return None
    ids = {tokenizer.convert_tokens_to_ids(t): t for t in markers}
    text = "a " + " b ".join(markers) + " c"
    rows = rows_like(
        subject.classes, {"row_id": ["x"], "prompt": [[text]], "response_a": [["a"]], "response_b": [["b"]]}
    )
    encoder = encoder_of(subject)
    encoded = encoder.encode(rows)[0].tolist()
    own = encoded[len(encoder.prefix) : len(encoded) - len(encoder.suffix)]
    found = [ids[t] for t in own if t in ids and t != tokenizer.unk_token_id]
    if not found:
        return passed(f"none of {len(markers)} came through")
    shown = ", ".join(list(Counter(found))[:4])
    return failed(
        f"{len(found)} come through as tokens, such as {shown}",
        "a row's text can end its own prompt, or imitate the template",
        "flag them special (AddedToken(special=True)), or strip them in data.prepare",
    )


@check("tokens", "tokenizer")
def verdict_cue_kept(subject: Subject) -> Finding | None:
    """Every sequence ends alike, in the verdict cue, also where it was truncated.

    Source: the public LMSYS notebook cuts 1,024 tokens on the right, cue and response B with them; left
    truncation was worth .005 (discussion 527596).
    """
    if subject.is_encoder and subject.ids is None:
        return None
    rows = training_ids(subject)
    ends = Counter(ids[-1] for ids in rows)
    (usual, count), longest = ends.most_common(1)[0], max(map(len, rows))
    cut = sum(len(ids) == longest and ids[-1] != usual for ids in rows)
    pair, sets = subject.classes.swap is not None, subject.classes.candidates
    one_turn = ([EMPTY], [EMPTY] if pair or sets else [], [EMPTY] if pair else [])
    if subject.ids is None and isinstance(encoder_of(subject).layout(one_turn, pair)[-1], tuple):
        return warned("the template closes with nothing", "unmeasured", "give the template a closing cue")
    if count == len(rows):
        return passed(f"{count} of {count} end in token {usual}")
    return failed(
        f"{len(rows) - count} of {len(rows)} do not end in the cue, {cut} of them at the length limit",
        "about .005 log-loss at 1,024 tokens (discussion 527596)",
        "budget truncation by segment (data.encoding.encode), or truncate on the left",
    )


@check("tokens", "tokenizer")
def truncation_commutes(subject: Subject) -> Finding | None:
    """Cutting a long row and swapping its responses commute, so both orders see the same text.

    Source: 1st and 2nd place of LMSYS average both orders; a cut that favours one slot biases the average.
    """
    if subject.is_encoder or subject.ids is not None or subject.classes.swap is None:
        return None
    encoder, classes = encoder_of(subject), subject.classes
    encoded, exchanged = (encoder.encode(sample_rows(classes, turned)) for turned in (False, True))
    pairs = [(encoded[2 * i + 1], exchanged[2 * i]) for i in range(len(encoded.lengths) // 2)]
    uneven = [i for i, (one, two) in enumerate(pairs) if not np.array_equal(one, two)]
    if uneven:
        return failed(
            f"{len(uneven)} of {len(pairs)} rows keep other text when swapped",
            "biased order averaging",
            "give both responses symmetric budgets",
        )
    return passed(f"{encoded.truncated} cut sequences keep the same text in both orders")


@check("tokens", "tokenizer", "data_dir")
def truncated_share(subject: Subject) -> Finding | None:
    """Few rows of the data are truncated at the declared length.

    Source: max_length 1,024 → 2,048 was worth .004, inference at 3,072 another .001 (discussion 527596).
    """
    if subject.rows is None or subject.is_encoder:
        return None
    encoded = encoder_of(subject).encode(subject.rows)
    share = encoded.truncated / max(1, len(encoded.lengths))
    limit = subject.model.encode.max_length
    shown = f"{share:.1%} at max_length {limit}; mean {encoded.lengths.mean():.0f} tokens"
    if share <= TRUNCATED_SHARE:
        return passed(shown)
    return warned(shown, "about .004 from 1,024 to 2,048 (discussion 527596)", "raise encode.max_length")


@check("tokens", "tokenizer")
def training_and_prediction_alike(subject: Subject) -> Finding | None:
    """Training and prediction encode the same rows to the same ids, byte for byte.

    Source: the commonest fault of submission kernels: another tokenizer, template or length at inference.
    """
    if subject.ids is not None and subject.predict_ids is not None:
        one, two = read_ids(subject.ids), read_ids(subject.predict_ids)
        other = [i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        if len(one) != len(two) or other:
            return failed(
                f"{len(one)} and {len(two)} sequences, {len(other)} differ"
                + (f", first number {other[0]}" if other else ""),
                "the model is asked about a text it was not trained on",
                "call the same function in both",
            )
        return passed(f"{len(one)} sequences are the same")
    if subject.manifest is None:
        return None
    return _manifest_agrees(subject)


def _manifest_agrees(subject: Subject) -> Finding:
    manifest = subject.manifest or {}
    found = tokenizer_hash(subject.tokenizer)
    cost, fix = "the model is asked about a text it was not trained on", "restore the files of the training"
    if found != manifest.get("tokenizer_hash"):
        return failed(
            f"the tokenizer is {found[:12]}…, trained with {manifest['tokenizer_hash'][:12]}…", cost, fix
        )
    now = encoder_of(subject).describe()["truncation"]
    then = manifest.get("truncation", {})
    differing = [key for key in then if now.get(key) != then[key]]
    if differing:
        key = differing[0]
        return failed(f"{key} is {now.get(key)}, trained with {then[key]}", cost, fix)
    return passed("tokenizer, template and truncation are those of the training")


@check("tokens", "tokenizer")
def fast_tokenizer(subject: Subject) -> Finding:
    """The tokenizer has a fast form, whose behaviour a ``tokenizer.json`` pins whole.

    Source: transformers #30947: slow and fast Llama tokenizers disagree on BOS and EOS.
    """
    if getattr(subject.tokenizer, "is_fast", False):
        return passed("fast")
    return failed("slow only", "this toolkit refuses it", "convert it: transformers.convert_slow_tokenizer")


@check("tokens", "tokenizer", "config")
def vocabulary_fits(subject: Subject) -> Finding:
    """No token id lies outside the embedding matrix.

    Source: a pad token added without ``resize_token_embeddings`` fails on CUDA with an opaque assertion.
    """
    tokenizer, rows = subject.tokenizer, subject.config.vocab_size
    top = max(tokenizer.get_vocab().values())
    if top < rows:
        return passed(f"largest id {top}, {rows} embeddings")
    beyond = {number for number in tokenizer.get_vocab().values() if number >= rows}
    roles = {getattr(tokenizer, role) for role in (*SPECIAL_IDS, "unk_token_id")}
    if (
        beyond <= set(special_ids(tokenizer)) - roles
    ):  # as a text model's that has its tokenizer from a larger
        return passed(f"{rows} embeddings; {len(beyond)} special tokens beyond them, which no text holds")
    return failed(
        f"largest id {top}, but {rows} embeddings",
        "a crash, or garbage at those tokens",
        "use a reserved token in place of the added one, or resize the embeddings",
    )
