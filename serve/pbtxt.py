"""Protobuf's text format, in which Triton's `config.pbtxt` is written, read into plain values.

A message becomes a dict from a field's name to the list of its values, in order. A value is again a
message, or the word, number or quoted string as it is written. No schema is checked.
"""

import re
from typing import Any

Message = dict[str, list[Any]]

TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<word>[-+.\w]+)
      | (?P<sign>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
CLOSING = {"{": "}", "<": ">"}


class PbtxtError(ValueError):
    """The text is not of this format."""


def parse(text: str) -> Message:
    """The message that is the whole text; `PbtxtError` says what is wrong and where it stands."""
    tokens = _tokens(text)[::-1]  # a stack: the next one is the last
    return _message(tokens, "")


def _tokens(text: str) -> list[str]:
    tokens, at = list[str](), 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            line = text.count("\n", 0, at) + 1
            raise PbtxtError(f"line {line} has {text[at]!r} where a field or value should be")
        if found.lastgroup != "space":
            tokens.append(found[0])
        at = found.end()
    return tokens


def _message(tokens: list[str], closing: str) -> Message:
    message: Message = {}
    while tokens and tokens[-1] != closing:
        field = tokens.pop()
        if not re.fullmatch(r"\w+", field):
            raise PbtxtError(f"{field!r} stands where a field's name should be")
        if tokens and tokens[-1] == ":":
            tokens.pop()
        message.setdefault(field, []).extend(_values(tokens))
        if tokens and tokens[-1] in ",;":
            tokens.pop()
    if closing:
        _pop(tokens)
    return message


def _values(tokens: list[str]) -> list[Any]:
    """One value, or those of a list in brackets."""
    token = _pop(tokens)
    if token in CLOSING:
        return [_message(tokens, CLOSING[token])]
    if token == "[":
        values: list[Any] = []
        while (following := tokens[-1:]) != ["]"]:
            if following == [","]:
                tokens.pop()
            else:
                values += _values(tokens)
        tokens.pop()
        return values
    if TOKEN.fullmatch(token).lastgroup == "sign":  # type: ignore[union-attr]
        raise PbtxtError(f"{token!r} stands where a value should be")
    while token[0] in "\"'" and tokens and tokens[-1][0] in "\"'":
        token += " " + tokens.pop()  # strings side by side are one
    return [token]


def _pop(tokens: list[str]) -> str:
    if not tokens:
        raise PbtxtError("the text ends inside a field")
    return tokens.pop()
