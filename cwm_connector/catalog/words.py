"""The texts that a search looks at: a window's name, description and tags, folded alike with what is typed.

A typed word is found wherever it stands, also inside a word and in languages that write without spaces. Case, accents
and the kind of separator do not matter: `debug_session` finds "Debug session".

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


def fold(text: str) -> str:
    """Return the text with one form for all spellings, and "-" for each run of separators."""
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    folded = unicodedata.normalize("NFC", plain.casefold().translate(_LETTERS))
    return re.sub(" +", "-", "".join(character if _is_kept(character) else " " for character in folded)).strip("-")


def searched_text(name: str, description: str, tags: Sequence[str]) -> str:
    """Return the folded texts of a window. No typed word reaches from one into another."""
    return "\n".join(fold(text) for text in (name, description, *tags))


def typed_words(search: str) -> tuple[str, ...] | None:
    """Return the folded words, the longest first, without those of separators only. None if nothing was typed.

    A word that another one contains is left out, because it is found with that one.
    """
    typed = [word for word in re.split(r"[\s\0]+", search) if word]
    if not typed:
        return None
    words = sorted({folded for word in typed if (folded := fold(word))}, key=lambda word: (-len(word), word))
    return tuple(word for at, word in enumerate(words) if not any(word in longer for longer in words[:at]))


def _is_kept(character: str) -> bool:
    """Return whether the character is no separator: a letter, a digit, a mark, or a sign beyond ASCII, as emoji are."""
    return character.isalnum() or (not character.isascii() and unicodedata.category(character)[0] in "LMNS")
