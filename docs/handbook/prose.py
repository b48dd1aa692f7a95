"""Docstrings as Markdown: what reads well as plain text, told apart from what Markdown would make of it."""

import re

_DOCTEST = re.compile(r"(^ *>>> .*(?:\n.*\S.*)*)", re.MULTILINE)
_SEVERAL = re.compile(r"^( +)(\w+)((?:, \w+)+)(: .*(?:\n\1 +.*)*)", re.MULTILINE)
_CODE = r"`[^`]*`|(?<=\n\n)(?: {4}.*\n?)+"
_EMPHASIS = r"(?<![\w*])\*[^\s*](?:[^*\n]*[^\s*])?\*(?!\w)"
_STARRED_ITEM = r"^ *\*+\w+:"
_KEPT = re.compile(f"{_CODE}|{_EMPHASIS}|{_STARRED_ITEM}", re.MULTILINE)


def markdown(text: str) -> str:
    """A docstring whose doctests are code, whose `w*` is no emphasis and whose items have one name each."""
    return "".join(_fenced(part) if i % 2 else _plain(part) for i, part in enumerate(_DOCTEST.split(text)))


def _fenced(doctest: str) -> str:
    indent = doctest[: doctest.index(">")]
    return f"{indent}```pycon\n{doctest}\n{indent}```"


def _plain(text: str) -> str:
    text = _SEVERAL.sub(_one_by_one, text.replace("::\n\n    ", ":\n\n    "))
    kept = list(_KEPT.finditer(text))
    return re.sub(r"\*", lambda star: "*" if any(k.start() <= star.start() < k.end() for k in kept) else r"\*", text)


def _one_by_one(item: re.Match[str]) -> str:
    """The item "x, y: the data." as two items, for each has a type of its own."""
    indent, first, others, said = item.groups()
    return indent + first + said + "".join(f"\n{indent}{other}: see `{first}`." for other in others.split(", ")[1:])
