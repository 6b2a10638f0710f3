"""The corpus that demonstrations load."""

from collections import Counter

from deploy.local.artifacts import default_cache
from deploy.local.corpus import CATEGORIES, texts


def test_the_corpus_is_large_real_and_always_the_same() -> None:
    entries = texts(default_cache())
    assert len(entries) == 117_791
    assert [entry.id for entry in entries[:3]] == [1, 2, 3]
    assert (entries[0].title, entries[0].category) == ("combat pilot", "noun.person")
    assert entries[0].body == "airplane pilot who fights in an action between two military forces"
    assert all(entry.title and entry.body and entry.category in CATEGORIES for entry in entries)


def test_any_first_part_is_mixed_from_all_kinds() -> None:
    kinds = Counter(entry.category.partition(".")[0] for entry in texts(default_cache())[:10_000])
    assert kinds.keys() == {"noun", "verb", "adj", "adv"}
    assert max(kinds.values()) < 8_000


def test_words_are_written_as_people_write_them() -> None:
    entries = texts(default_cache())
    assert not any("_" in entry.title for entry in entries)
    galore = next(entry for entry in entries if entry.title == "abounding, galore")
    assert (galore.category, galore.body[:14]) == ("adj.all", "existing in ab")
