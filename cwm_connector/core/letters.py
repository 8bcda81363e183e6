"""Letters of any script in names, without those that are invisible or pretend to be another. Pure functions."""

import re
import unicodedata
from typing import Final

_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that show nothing. Control and format characters are no letters at all."""
_OVERLAYS: Final = re.compile("[\u0334-\u0338\u02b0-\u02ff\ua717-\ua721]")
"""Strokes over another letter, and signs that look like quotes and colons."""
_WHOLE: Final = frozenset("\u0e33\u0eb3\u0edc\u0edd")
"""Letters of Thai and Lao that Unicode counts as compatibility forms."""
_LOOK_LATIN: Final = (
    frozenset("аеорсухіїјѕһԁԛԝӏАВЕЅІЈКМНОРСТУХҮԌԚԜ"),
    frozenset("αικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧϲϳ"),
)
_ALPHABETS: Final = ("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU")
"""Scripts that share shapes. A name takes letters of one of them."""


def why_not(name: str, signs: str) -> str | None:
    """Return why a text in NFC is no name, or None. A name has letters, digits and `signs`."""
    for character in name:
        if character not in signs and not _is_letter_or_digit(character):
            return f"it has {_shown(character)}"
    if any(_is_mark(second) and (first in signs) for first, second in zip(f"{signs[0]}{name}", name, strict=False)):
        return "it has a mark without a letter"
    alphabets = {script for character in name if (script := _alphabet(character))}
    if len(alphabets) > 1:
        mixed = " and ".join(script.capitalize() for script in sorted(alphabets))
        return f"it mixes {mixed} letters, some of which look alike"
    letters = {character for character in name if character.isalpha()}
    if letters and any(letters <= alike for alike in _LOOK_LATIN):
        return "all its letters look like Latin ones"
    if len({ord(character) - unicodedata.decimal(character) for character in name if character.isdecimal()}) > 1:
        return "it mixes digits of several scripts"
    return None


def _is_letter_or_digit(character: str) -> bool:
    if character.isascii():
        return character.isalnum()
    if _INVISIBLE.match(character) or _OVERLAYS.match(character):
        return False
    if character not in _WHOLE and unicodedata.normalize("NFKC", character) != character:
        return False
    return unicodedata.category(character) in ("Ll", "Lu", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _alphabet(character: str) -> str | None:
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "").split(" ")[0]
    return script if script in _ALPHABETS else None


def _shown(character: str) -> str:
    """Return the character as it can be printed anywhere, and its name."""
    return f"{character!a} ({unicodedata.name(character, 'no letter').lower()})"
