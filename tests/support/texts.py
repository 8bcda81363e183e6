"""Deterministic prose of any length: the working log of a canal lock's repair, different for every seed.

Entries are numbered and hold names, places and figures, so that a question about them has an answer in the text and
no two texts share a prefix beyond their title.
"""

import random
from typing import Final, Protocol

_PEOPLE: Final = ("Ines Okafor", "Tomas Lindqvist", "Rahel Abebe", "Yusuf Demir", "Clara Novak", "Piet van Dijk")
_PLACES: Final = (
    "the upper gate", "the lower gate", "the north culvert", "the south culvert", "the pump house", "the sluice room",
    "the east wall", "the west wall", "the keeper's cottage", "the bypass weir",
)  # fmt: skip
_FINDINGS: Final = (
    "the heel post has worn {n} millimetres and grinds when the leaf swings",
    "the old mortar came away in {n} places, and water stands behind the stones",
    "pump {n} draws more current than its plate allows once it is warm",
    "the gauge board reads {n} centimetres too high against the surveyed mark",
    "{n} bolts of the rack were replaced with a softer steel some time in the past",
    "roots have opened {n} joints below the water line",
)
_DECISIONS: Final = (
    "We ordered oak of the same section and will fit it in week {n}.",
    "The wall is to be grouted from below in {n} short lifts, each left to set over a night.",
    "Until a new bearing arrives it runs for at most {n} minutes an hour.",
    "The lock stays open for boats under {n} tonnes; larger ones wait for the tow.",
    "A diver looks at it again in {n} days, before anything is taken apart.",
)
_WEATHER: Final = (
    "Dry and cold.",
    "Light rain until noon.",
    "Fog on the pound.",
    "Strong wind from the west.",
    "Clear.",
)


def project_log(seed: int, entries: int) -> str:
    """The log's first `entries` entries, about 60 tokens each."""
    chance = random.Random(seed)
    lines = [f"Working log {seed}: the repair of Harrow Lock, a lock for boats on the canal"]
    for number in range(1, entries + 1):
        person, place = chance.choice(_PEOPLE), chance.choice(_PLACES)
        finding = chance.choice(_FINDINGS).format(n=chance.randint(2, 60))
        decision = chance.choice(_DECISIONS).format(n=chance.randint(2, 60))
        lines.append(
            f"Entry {number}. {chance.choice(_WEATHER)} {person} worked at {place} and found that {finding}. {decision}"
        )
    return "\n".join(lines) + "\n"


class Tokenizer(Protocol):
    async def tokenize(self, text: str) -> list[int]: ...


async def prompt_of(api: Tokenizer, seed: int, tokens: int) -> list[int]:
    """A prompt of exactly `tokens` token ids."""
    ids = await api.tokenize(project_log(seed, entries=tokens // 40 + 4))
    if len(ids) < tokens:
        raise ValueError(f"the log has {len(ids)} tokens only, not {tokens}")
    return ids[:tokens]
