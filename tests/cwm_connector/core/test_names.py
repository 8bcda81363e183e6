"""Names and tags: letters of any script, in one form, without what is invisible or looks like something else."""

import unicodedata

import pytest

from cwm_connector.core.errors import Code, CWMError
from cwm_connector.core.names import check_tags, check_window_name

GOOD = (
    *(
        "debug-session",
        "v1.2_rc",
        "2026",
        "größe",
        "Übersicht",
        "отладка",
        "Ελληνικά",
        "中文对话",
        "日本語のメモ",
        "한국어-2",
    ),
    *(
        "สนทนา-คำถาม",
        "हिन्दी",
        "עברית",
        "العربية",
        "tiếng-Việt",
        "Łódź",
        "react-组件",
        "ქართული",
        "٢٠٢٦",
        "ー",
        "x" * 128,
    ),
)


@pytest.mark.parametrize("name", GOOD)
def test_letters_of_any_script_make_a_name_and_a_tag(name: str) -> None:
    composed = unicodedata.normalize("NFC", name)
    assert check_window_name(name) == check_window_name(unicodedata.normalize("NFD", name)) == composed
    if len(name) <= 64:
        assert check_tags([name, unicodedata.normalize("NFD", name)]) == [composed]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".hidden",
            "two words",
            "a/b",
            "..",
            "a\\b",
            "a%2fb",
            "w\0",
            "w\n",
            "w\x7f",
            "w\x85",
            "x" * 129,
            "中" * 81,
        ),
        *("a\u200bb", "a\u200db", "a\u202eb", "\ufeffa", "a\u00adb", "a\u2060b", "a\u3164b", "a\ufe0fb", "a\u034fb"),
        *("p\u0430ypal", "\u0441\u043e\u0440\u0443", "\u03bf\u03c1\u03b1", "ab\u0338", "\u0301a", "-\u0301a"),
        *(
            "\uff41bc",
            "\ufb01le",
            "a\u00b2",
            "\U0001d41abc",
            "a\u2044b",
            "a\u2215b",
            "a\u2024b",
            "a\u02bcb",
            "a\u2010b",
        ),
        *("a1\u0662", "a\u0669\u09ea", "\ud800", "🚀", "a\u20dd", "①", "\ue000", "a\u0378"),
    ],
)
def test_what_is_invisible_or_looks_like_something_else_is_refused(name: str) -> None:
    with pytest.raises(CWMError) as refused:
        check_window_name(name)
    assert refused.value.code is Code.WINDOW_NAME
    assert refused.value.message.isascii() and refused.value.message.isprintable()
    with pytest.raises(CWMError):
        check_tags([name or "a b"] if not name.startswith(".") and len(name) not in (128, 129) else ["a b"])


def test_the_message_says_what_is_wrong() -> None:
    for name, said in (
        ("two words", "space"),
        ("a\u200bb", "zero width space"),
        ("p\u0430ypal", "mixes Cyrillic and Latin"),
        ("\u0441\u043e\u0440\u0443", "look like Latin"),
    ):
        with pytest.raises(CWMError, match=said):
            check_window_name(name)
