import pytest

from cwm_connector.core.keys.extras import PLAIN, Extras, Item

CAT, DOG = Item(100, 50, "image:c"), Item(200, 50, "image:d")


def test_extras_come_back_from_the_fields_of_a_passport() -> None:
    extras = Extras("a" * 64, (CAT, DOG))
    assert Extras.of_passport({"weights": "w", **extras.fields()}) == extras
    assert PLAIN.fields() == {} and Extras.of_passport({"weights": "w"}) == PLAIN


@pytest.mark.parametrize("items", ["7", "[7]", "[[1,2,3]]", '[[-1,2,"i"]]', '[[1,0,"i"]]', "{", "[" * 100_000])
def test_items_that_cannot_be_read_raise_a_value_error(items: str) -> None:
    with pytest.raises(ValueError):
        Extras.of_passport({"items": items})


def test_two_contexts_agree_up_to_the_first_item_that_differs() -> None:
    ours = Extras(items=(CAT, DOG))
    assert ours.common_tokens(Extras(items=(CAT,))) == 200
    assert ours.common_tokens(Extras(items=(CAT, Item(180, 50, "image:d")))) == 180
    assert ours.common_tokens(Extras(items=(Item(100, 50, "image:d"),))) == 100
    assert ours.common_tokens(Extras(items=(CAT, DOG))) > 1 << 40
    assert ours.common_tokens(Extras("adapter", (CAT, DOG))) == 0


def test_an_item_belongs_to_each_span_that_it_overlaps_with_its_place_in_it() -> None:
    extras = Extras(items=(CAT, DOG))
    assert extras.within(0, 100) == extras.within(150, 200) == extras.within(250, 300) == b""
    assert extras.within(0, 101) == b'[[100,50,"image:c"]]'
    assert extras.within(128, 256) == b'[[-28,50,"image:c"],[72,50,"image:d"]]'


def test_the_extras_of_a_beginning_are_the_items_that_begin_in_it() -> None:
    assert Extras("a", (CAT, DOG)).before(200) == Extras("a", (CAT,))
