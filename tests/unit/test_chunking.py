import re

from hypothesis import given
from hypothesis import strategies as st

from daemon.embedding.chunking import chunks


def words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def test_a_text_that_fits_stays_as_it_is() -> None:
    text = "  one two. three "
    assert chunks(text, words(text), 10, 2) == [text]


def test_a_chunk_ends_with_a_sentence_where_one_ends_in_its_second_half() -> None:
    text = "one two three four five. six seven eight nine ten eleven twelve."
    assert chunks(text, words(text), 8, 0) == [
        "one two three four five.",
        "six seven eight nine ten eleven twelve.",
    ]


def test_a_sentence_that_is_too_long_is_cut_when_full() -> None:
    text = " ".join(f"w{n}" for n in range(10))
    assert chunks(text, words(text), 4, 0) == ["w0 w1 w2 w3", "w4 w5 w6 w7", "w8 w9"]


def test_neighbours_share_the_overlap() -> None:
    text = " ".join(f"w{n}" for n in range(10))
    assert chunks(text, words(text), 4, 2) == ["w0 w1 w2 w3", "w2 w3 w4 w5", "w4 w5 w6 w7", "w6 w7 w8 w9"]


@given(
    st.lists(st.sampled_from([" ", " ", ". ", "!\n", "\n", '." ']), max_size=80),
    st.integers(1, 12),
    st.integers(0, 6),
)
def test_no_token_is_left_out_and_no_chunk_is_too_long(
    gaps: list[str], tokens_max: int, overlap: int
) -> None:
    text = "".join(f"w{number}{gap}" for number, gap in enumerate(gaps))
    overlap = min(overlap, tokens_max // 2)
    pieces = chunks(text, words(text), tokens_max, overlap)
    if len(words(text)) <= tokens_max:
        assert pieces == [text]
        return
    assert all(1 <= len(words(piece)) <= tokens_max and piece in text for piece in pieces)
    numbers = [[int(number) for number in re.findall(r"w(\d+)", piece)] for piece in pieces]
    assert sorted({number for piece in numbers for number in piece}) == list(range(len(gaps)))
    if overlap == 0:
        assert sum(len(words(piece)) for piece in pieces) == len(words(text))
