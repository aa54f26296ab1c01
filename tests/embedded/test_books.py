"""Books: clean text, held-out split, hashes, and what is said when one is absent."""

import pytest

from workbench_datasets import books, registry

RAW = "\r\n".join(
    (
        "The Project Gutenberg EBook of X",
        "",
        "*** START OF THIS PROJECT GUTENBERG EBOOK X ***",
        "",
        "Produced by A",
        "",
        "It was _very_",
        "late.",
        "",
        "“Yes,” he said — no.",
        "",
        "*** END OF THIS PROJECT GUTENBERG EBOOK X ***",
        "licence",
    )
)


def test_clean_strips_headers_joins_lines_and_plain_quotes():
    assert books.clean(RAW) == 'It was very late.\n\n"Yes," he said -- no.\n'


def test_splits_are_disjoint_and_whole():
    train, held = set(books.names("train")), set(books.names("heldout"))
    assert held == set(books.HELD_OUT)
    assert len(train) == 11
    assert not train & held
    assert train | held == set(books.names())


@pytest.mark.parametrize("call", [lambda: books.names("test"), lambda: books.read("ulysses")])
def test_bad_input_names_the_argument(call):
    with pytest.raises(ValueError, match="expected one of"):
        call()


def test_absent_book_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "folders", lambda: [tmp_path])
    with pytest.raises(FileNotFoundError, match=r"dracula\.txt"):
        books.read("dracula")


def test_heldout_books_are_clean_and_not_in_training():
    try:
        held, train = books.load("heldout"), books.load("train")
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    everything = "".join(train.values())
    assert "Gutenberg" not in everything
    for text in held.values():
        assert len(text) > 400_000
        assert "Gutenberg" not in text
        long = [p for p in books.paragraphs({"x": text}) if len(p.split()) > 20]
        assert not any(p in everything for p in long[:: max(1, len(long) // 60)])
