"""How far apart equal greedy requests are on this platform when no window is involved: no proof can be better."""

import asyncio
from collections.abc import Iterable

from tests.certify.compare import Difference, difference
from tests.support.api import Api, Completion
from tests.support.texts import prompt_of

TOKENS = 16
LOGPROBS = 1
"""The tokens' own logprobs. Lower ranks come and go at near ties."""
BESIDE = 4
"""Requests in a batch."""
LENGTH = 650


async def noise_floor(api: Api, seed: int, rounds: int) -> dict[str, Difference]:
    """Compare a prompt, computed alone, with the same prompt in three other ways. The largest difference of each."""
    found: dict[str, list[Difference]] = {}
    for number in range(rounds):
        prompt = await prompt_of(api, 7000 + 100 * seed + number, LENGTH)

        async def ask(salt: str, prompt: list[int] = prompt, number: int = number) -> Completion:
            return await api.complete(prompt, TOKENS, cache_salt=f"noise-{number}-{salt}", logprobs=LOGPROBS)

        alone = await ask("alone")
        found.setdefault("cold beside cold", []).append(difference(alone, await ask("again")))
        batch = await asyncio.gather(*(ask(f"batch-{each}") for each in range(BESIDE)))
        found.setdefault(f"cold beside cold in a batch of {BESIDE}", []).append(
            worst(difference(alone, each) for each in batch)
        )
        found.setdefault("cold beside prefix hit", []).append(difference(alone, await ask("alone")))
    return {what: worst(each) for what, each in found.items()}


def worst(differences: Iterable[Difference]) -> Difference:
    """Return the fewest equal tokens and the largest distance."""
    all_of_them = list(differences)
    return Difference(
        min(each.tokens for each in all_of_them), all_of_them[0].of, max(each.logprob for each in all_of_them)
    )
