"""A search finds any language, parts of words, and every spelling of them, in names, descriptions and tags."""

from pathlib import Path

import pytest

from cwm_connector.catalog.base import WindowQuery
from cwm_connector.catalog.sqlite.catalog import SqliteCatalog
from cwm_connector.catalog.words import fold
from tests.cwm_connector.catalog.samples import at, chain, new_window

TEXTS = {
    "chinese": "今天我们讨论了缓存一致性的问题",
    "japanese": "キャッシュの不具合を修正しました",
    "korean": "캐시 일관성 문제를 해결했다",
    "thai": "แก้ไขปัญหาแคชแล้ว",
    "russian": "Исправили ошибку в Кэше",
    "german": "Größere Straße für Übertragungen",
    "french": "Débogage d’un café élégant",
    "polish": "Łódź i żółw",
    "turkish": "İstanbul ışık",
    "hebrew": "תיקון שָׁלוֹם מטמון",
    "arabic": "إصلاح ذاكرة التخزين",
    "hindi": "कैश की समस्या ठीक की",
    "emoji": "shipped 🚀 today",
}


@pytest.fixture
def library(catalog: SqliteCatalog) -> SqliteCatalog:
    for n, (name, text) in enumerate(TEXTS.items()):
        tags = ["größe" if name == "german" else "tag", "v2"]
        catalog.commit_window(new_window(name, chain(name, 1), description=text, tags=tags, created_at=at(n)))
    return catalog


@pytest.mark.parametrize(
    ("search", "name"),
    [
        *(("缓存", "chinese"), ("题", "chinese"), ("一致性", "chinese"), ("今天 问题", "chinese")),
        *(("不具合", "japanese"), ("修正", "japanese"), ("キャッシュ", "japanese"), ("ｷｬｯｼｭ", "japanese")),
        *(("일관", "korean"), ("문제를", "korean"), ("ปัญหา", "thai"), ("แคช", "thai")),
        *(("кэш", "russian"), ("ОШИБКУ", "russian"), ("шибк", "russian")),
        *(("strasse", "german"), ("STRASSE", "german"), ("ubertrag", "german"), ("groß", "german")),
        *(("debogage", "french"), ("d'un", "french"), ("cafe\u0301", "french"), ("ÉLÉ", "french")),
        *(("lodz", "polish"), ("zolw", "polish"), ("istanbul", "turkish"), ("isik", "turkish")),
        *(("שלום", "hebrew"), ("مطمون", None), ("ذاكرة", "arabic"), ("समस्या", "hindi"), ("🚀", "emoji")),
        *(("hines", "chinese"), ("v2 russian", "russian"), ("缓存 russian", None), ("grosse", "german")),
    ],
)
def test_every_language_is_found_by_its_parts(
    library: SqliteCatalog, path: Path, search: str, name: str | None
) -> None:
    expected = {name} if name else set()
    assert {row.name for row in library.list_windows(WindowQuery(search=search)).windows} == expected
    reader = SqliteCatalog.open_read_only(path)
    assert {row.name for row in reader.list_windows(WindowQuery(search=search)).windows} == expected
    reader.close()


def test_folding_twice_changes_nothing_and_leaves_no_separator_at_the_ends() -> None:
    for text in (*TEXTS.values(), " -- ", "a\0b\ue000c\n", "İ", "ﬁ ½ ①"):
        assert fold(fold(text)) == fold(text)
        assert not fold(text).startswith("-") and "\n" not in fold(text) and "\ue000" not in fold(text)
