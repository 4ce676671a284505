import gzip
import os
from pathlib import Path

import pytest

from tokenizer.bpe import BpeTokenizer
from tokenizer.errors import UserError
from tokenizer.folder import describe, load_tokenizer, train_tokenizer
from tokenizer.spm import SentencePieceTokenizer


@pytest.fixture
def text_file(tmp_path: Path, corpus: list[str]) -> Path:
    path = tmp_path / "train.en"
    path.write_bytes("\n".join(corpus).encode())
    return path


@pytest.mark.parametrize(
    ("library", "algorithm", "kind", "name"),
    [
        ("tokenizers", "bpe", BpeTokenizer, "tokenizer.json"),
        ("sentencepiece", "bpe", SentencePieceTokenizer, "sentencepiece.model"),
        ("sentencepiece", "unigram", SentencePieceTokenizer, "sentencepiece.model"),
    ],
)
def test_what_is_trained_is_loaded(
    library: str, algorithm: str, kind: type, name: str, text_file: Path, tmp_path: Path
) -> None:
    trained = train_tokenizer([text_file], vocab_size=350, algorithm=algorithm, library=library)
    trained.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert isinstance(loaded, kind)
    assert set(loaded.files()) == {name}
    assert loaded.vocab_size == trained.vocab_size <= 350
    assert loaded.encode("a dog runs") == trained.encode("a dog runs")


@pytest.mark.parametrize("library", ["tokenizers", "sentencepiece"])
def test_paths_may_be_strings(library: str, text_file: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "tokenizer")
    trained = train_tokenizer([str(text_file)], vocab_size=350, library=library)
    trained.save(folder)
    assert load_tokenizer(folder).files() == trained.files()
    assert describe(trained, [str(text_file)]) == describe(trained, [text_file])


def test_all_files_share_one_vocabulary(tmp_path: Path) -> None:
    for name, data in (("a.en", b"a dog\n" * 9), ("b.de.gz", gzip.compress(b"ein Hund\n" * 5))):
        (tmp_path / name).write_bytes(data)
    tokenizer = train_tokenizer([tmp_path / "a.en", tmp_path / "b.de.gz"], vocab_size=300)
    assert tokenizer.pieces("a Hund") == ["▁a", "▁Hund"]


@pytest.mark.parametrize(
    ("library", "algorithm", "message"),
    [
        ("tokenizers", "unigram", "--library sentencepiece"),
        ("tokenizers", "wordpiece", "algorithm wordpiece: not known"),
        ("nltk", "bpe", "library nltk: not known"),
    ],
)
def test_choice_that_does_not_exist_is_explained(
    library: str, algorithm: str, message: str, text_file: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train_tokenizer([text_file], algorithm=algorithm, library=library)


@pytest.mark.parametrize("library", ["tokenizers", "sentencepiece"])
def test_files_without_text_are_named(library: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blank").write_bytes(b"\n  \n" * 50)
    with pytest.raises(UserError, match=r"empty, .*blank: no text"):
        train_tokenizer([tmp_path / "empty", tmp_path / "blank"], library=library)
    with pytest.raises(UserError, match="no files"):
        train_tokenizer([], library=library)


@pytest.mark.parametrize("library", ["tokenizers", "sentencepiece"])
def test_line_that_is_not_utf8_is_named_in_training(library: str, tmp_path: Path) -> None:
    path = tmp_path / "train.de"
    path.write_bytes(b"ja\n" * 6 + b"n\xff\n")
    with pytest.raises(UserError, match=r"train\.de: line 7: not UTF-8 \(byte 0xff at column 2\)"):
        train_tokenizer([path], library=library)


def test_progress_counts_lines_and_characters(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes("äb\n".encode() * 25_000)
    seen: list[tuple[int, int]] = []
    train_tokenizer([path], vocab_size=300, progress=lambda n, c: seen.append((n, c)))
    assert seen == [(10_000, 20_000), (20_000, 40_000), (25_000, 50_000)]


def test_report_counts(text_file: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([text_file], vocab_size=350)
    path = tmp_path / "x"
    path.write_bytes("a dog\n\nä\n".encode())
    report = describe(tokenizer, [path])
    assert (report.n_lines, report.n_characters, report.n_words) == (3, 6, 3)
    assert report.n_pieces == len(tokenizer.encode("a dog")) + len(tokenizer.encode("ä"))
    assert report.pieces_per_word == report.n_pieces / 3
    assert report.vocab_size == tokenizer.vocab_size


def test_report_takes_lines_from_each_file(text_file: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([text_file], vocab_size=350)
    for name, line in (("a", b"a\n"), ("b", b"bbb\n")):
        (tmp_path / name).write_bytes(line * 100)
    report = describe(tokenizer, [tmp_path / "a", tmp_path / "b"], max_lines=10)
    assert (report.n_lines, report.n_characters) == (10, 5 * 1 + 5 * 3)
    assert describe(tokenizer, []).pieces_per_word == 0.0


def test_folder_without_a_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"no tokenizer; make one with `tfm train-tokenizer`"):
            load_tokenizer(folder)


def test_two_tokenizers_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "sentencepiece.model"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(UserError, match=r"holds both tokenizer\.json and sentencepiece\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "sentencepiece.model"])
def test_only_regular_files_of_sane_size_are_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / name)
    with pytest.raises(UserError, match=f"{name}: is not a regular file"):
        load_tokenizer(tmp_path / "pipe")
    (tmp_path / "folder" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name}: is not a regular file"):
        load_tokenizer(tmp_path / "folder")
    (tmp_path / "huge").mkdir()
    with (tmp_path / "huge" / name).open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(UserError, match="more than the 67108864 it may have"):
        load_tokenizer(tmp_path / "huge")


def test_truncated_file_is_refused_at_any_length(text_file: Path, tmp_path: Path) -> None:
    for library in ("tokenizers", "sentencepiece"):
        ((name, data),) = (
            train_tokenizer([text_file], vocab_size=350, library=library).files().items()
        )
        folder = tmp_path / library
        folder.mkdir()
        for length in (0, 1, len(data) // 2, len(data) - 1):
            (folder / name).write_bytes(data[:length])
            with pytest.raises(UserError, match=name):
                load_tokenizer(folder)
