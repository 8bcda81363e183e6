"""What the results of freezes, thaws and `cwm prove` say about proofs.

A proof is the greedy token after a window's tokens, with its logprob. It is taken at the freeze, and repeated over the
KV that a thaw loads.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Outcome = Literal["equal", "different", "none"]
"""`none`: nothing was compared, or not all of the window was loaded."""


class TakenProof(msgspec.Struct, frozen=True):
    """The greedy token that came after the window's tokens at the freeze."""

    token_id: int
    logprob: float
    taken_at: str


class ProofCheck(msgspec.Struct, frozen=True):
    """A proof beside its repetition. None is unknown."""

    equal: bool
    token_id: int | None
    repeated_token_id: int | None
    logprob: float | None
    repeated_logprob: float | None
    difference: Annotated[float | None, Meta(description="Of the logprobs of one token: repeated minus first.")]
    loaded_tokens: Annotated[int, Meta(description="Tokens that were really loaded for the repetition.")]
    computed_tokens: int | None
    because: str
