"""The texts that a search looks at: a window's name, description and tags, folded alike with what is typed.

A typed word is found wherever it stands, also inside a word and in languages that write without spaces. Case, accents
and the kind of separator do not matter: `debug_session` finds "Debug session". SQLite's trigram tokenizer indexes three
characters at a time. So one and two characters are indexed once more, between characters that no folded text has.

Pure functions. Nothing here blocks.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

_ACCENTS: Final = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u065f\u0670]"
)
"""Accents of alphabets, and the points and lines of Hebrew and Arabic that most texts leave out."""
_LETTERS: Final = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe"})
"""Letters that Unicode does not take apart."""
_PAIR, _SINGLE = "\ue000", "\ue001"
_SHORT: Final = 3
"""Characters that the tokenizer needs."""
NOTHING: Final = f'"{_PAIR * _SHORT}"'
"""A query that no window matches."""


def fold(text: str) -> str:
    """Return the text with one form for all spellings, and "-" for each run of separators."""
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    folded = unicodedata.normalize("NFC", plain.casefold().translate(_LETTERS))
    return re.sub(" +", "-", "".join(character if _is_kept(character) else " " for character in folded)).strip("-")


def searched_text(name: str, description: str, tags: Sequence[str]) -> str:
    """Return the folded texts of a window. No typed word reaches from one into another."""
    return "\n".join(fold(text) for text in (name, description, *tags))


def indexed_text(name: str, description: str, tags: Sequence[str]) -> str:
    """Return what the index has of a window: the folded texts, and their single characters and pairs."""
    text = searched_text(name, description, tags)
    pairs = dict.fromkeys(text[start : start + 2] for start in range(len(text) - 1))
    short = [f"{_PAIR}{pair}" for pair in pairs if "\n" not in pair]
    short += [f"{_SINGLE}{single}{_SINGLE}" for single in dict.fromkeys(text) if single != "\n"]
    return f"{text}\n{''.join(short)}"


def typed_words(search: str) -> tuple[str, ...] | None:
    """Return the folded words, without those of separators only. None if nothing was typed."""
    words = [word for word in re.split(r"[\s\0]+", search) if word]
    return tuple(dict.fromkeys(folded for word in words if (folded := fold(word)))) if words else None


def match_expression(search: str) -> str | None:
    """Return the full-text query in which each typed word must stand somewhere in the window, or None without words.

    Each word is quoted, and a folded word has no quotes, so nothing in it is an operator.
    """
    words = typed_words(search)
    if words is None:
        return None
    return " ".join(f'"{_term(word)}"' for word in words) or NOTHING


def _term(word: str) -> str:
    if len(word) >= _SHORT:
        return word
    return f"{_SINGLE}{word}{_SINGLE}" if len(word) == 1 else f"{_PAIR}{word}"


def _is_kept(character: str) -> bool:
    """Return whether the character is no separator: a letter, a digit, a mark, or a sign beyond ASCII, as emoji are."""
    return character.isalnum() or (not character.isascii() and unicodedata.category(character)[0] in "LMNS")
