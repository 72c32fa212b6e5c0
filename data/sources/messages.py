"""Conversations as lists of messages: split into questions and answers, images left out."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data.errors import UserError, brief
from data.sources.clean import IMAGES, UNANSWERED, clean_text
from data.sources.place import Place


def read_turns(cell: object, place: Place, at: str) -> tuple[list[str], list[str]]:
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
        text = read_content(message["content"], place, where)
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


def read_content(content: object, place: Place, where: str) -> str:
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
