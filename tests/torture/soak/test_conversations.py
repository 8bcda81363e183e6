"""conversations.py: the same seed says the same, and branches share their beginnings."""

from random import Random

from tests.torture.soak.conversations import Conversations, drawn


class Letters:
    """A tokenizer for which every letter is a token."""

    async def tokenize(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


async def said(seed: str) -> Conversations:
    made = await drawn(Letters(), Random(seed), roots=2, depth=3)
    for turn in made.turns():
        turn.answer = (1, 2, 3)
    return made


async def test_the_same_seed_says_the_same() -> None:
    one, same, other = await said("1"), await said("1"), await said("2")
    assert [turn.prompt for turn in one.turns()] == [turn.prompt for turn in same.turns()]
    assert [turn.prompt for turn in one.turns()] != [turn.prompt for turn in other.turns()]


async def test_a_turn_repeats_its_parent_and_the_answer_and_parents_come_first() -> None:
    turns = (await said("1")).turns()
    assert [turn.name for turn in turns] == [
        "root-0", "root-1", "long-0", "long-1", "root-0.0", "root-0.1", "root-1.0", "root-1.1", "root-0.0.0",
        "root-1.0.0",
    ]  # fmt: skip
    for turn in turns:
        if turn.parent is not None:
            before = [*turn.parent.prompt, 1, 2, 3]
            assert turn.prompt[: len(before)] == before and len(turn.prompt) == len(before) + turn.added


async def test_a_conversation_is_all_that_begins_with_its_root() -> None:
    made = await said("1")
    leaf = next(turn for turn in made.turns() if turn.name == "root-0.0.0")
    assert [turn.name for turn in leaf.conversation()] == ["root-0", "root-0.0", "root-0.1", "root-0.0.0"]
