import bz2
import dataclasses
import gzip
import json
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from seq2seq.batch import Example
from seq2seq.corpus import Corpus, check_files, open_corpus, read_pairs, resample
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.lines import read_lines


def write(folder: Path, src: bytes, tgt: bytes) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a").write_bytes(src)
    (folder / "b").write_bytes(tgt)
    return folder / "a", folder / "b"


def store(
    files: tuple[Path, Path], tokenizer: Tokenizer, folder: Path, max_len: int = 100
) -> Corpus:
    return open_corpus(files[:1], files[1:], tokenizer, max_len, folder / "data")


# What is stored


def test_the_store_holds_what_encoding_gives(
    small_corpus: Corpus, small_tokenizer: Tokenizer, pairs: list[tuple[str, str]]
) -> None:
    assert len(small_corpus) == len(pairs)
    for i, (src, tgt) in enumerate(pairs):
        expected = small_tokenizer.encode(src), small_tokenizer.encode(tgt)
        assert small_corpus[i].sides() == expected
        assert small_corpus[i].index == i
        assert tuple(small_corpus.lengths[i]) == tuple(len(side) + 1 for side in expected)
    n_src, n_tgt = (sum(len(small_tokenizer.encode(p[i])) for p in pairs) for i in (0, 1))
    assert (small_corpus.report.n_src_tokens, small_corpus.report.n_tgt_tokens) == (n_src, n_tgt)


def test_several_files_are_one_corpus_in_order(
    parallel: tuple[Path, Path], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    extra = write(tmp_path, b"big dog\n", b"dog big\n")
    both = open_corpus(
        [parallel[0], extra[0]], [parallel[1], extra[1]], small_tokenizer, 100, tmp_path / "data"
    )
    assert len(both) == 201
    assert both[200].sides() == (
        small_tokenizer.encode("big dog"),
        small_tokenizer.encode("dog big"),
    )


def test_empty_and_long_pairs_are_skipped_and_counted(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    long = b"a " * 30
    files = write(tmp_path, b"a\n\nb\n \t\n" + long + b"\nc\n", b"1\n2\n\n\n5\n" + long + b"\n")
    corpus = store(files, small_tokenizer, tmp_path, max_len=20)
    report = corpus.report
    assert (report.n_lines, report.n_pairs, report.n_empty, report.n_too_long) == (6, 1, 3, 2)
    assert report.longest == len(small_tokenizer.encode(long.decode()))
    assert small_tokenizer.decode(corpus[0].sides()[0]) == "a"


def test_pairs_of_exactly_the_longest_length_are_kept(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    n = len(small_tokenizer.encode("the dog"))
    files = write(tmp_path, b"the dog\n", b"the dog\n")
    assert len(store(files, small_tokenizer, tmp_path, max_len=n)) == 1
    with pytest.raises(UserError, match=rf"1 with more than data.max_len = {n - 1} .*has {n}"):
        store(files, small_tokenizer, tmp_path, max_len=n - 1)


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n \n"])
def test_text_without_pairs_is_refused_and_leaves_nothing(
    content: bytes, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = write(tmp_path, content, content)
    with pytest.raises(UserError, match="no usable pairs"):
        store(files, small_tokenizer, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


class WideTokenizer:
    """Characters as ids, from 100,000 on."""

    vocab_size = 1_214_112

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[100_000 + ord(c) for c in text] for text in texts]

    def files(self) -> dict[str, bytes]:
        return {"wide": b""}


def test_large_vocabularies_are_stored_in_four_bytes(small_corpus: Corpus, tmp_path: Path) -> None:
    files = write(tmp_path, "a🙂\n".encode(), b"b\n")
    corpus = store(files, WideTokenizer(), tmp_path)  # type: ignore[arg-type]
    assert corpus[0].sides() == ([100_097, 100_000 + ord("🙂")], [100_098])
    assert (corpus.ids.dtype, small_corpus.ids.dtype) == (np.uint32, np.uint16)


def test_the_progress_told_ends_at_the_number_of_lines(
    parallel: tuple[Path, Path], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    told: list[int] = []
    open_corpus(parallel[:1], parallel[1:], small_tokenizer, 100, tmp_path / "data", told.append)
    assert told[-1] == 200


# When it is used again


@pytest.fixture
def reusable(tmp_path: Path, small_tokenizer: Tokenizer) -> tuple[tuple[Path, Path], Path]:
    files = write(tmp_path, b"a\nthe dog\n", b"b\ndog the\n")
    store(files, small_tokenizer, tmp_path)
    return files, tmp_path


def inode(folder: Path) -> int:
    return (folder / "data/ids.bin").stat().st_ino


def test_a_store_of_unchanged_files_is_used_again(
    reusable: tuple[tuple[Path, Path], Path], small_tokenizer: Tokenizer
) -> None:
    files, folder = reusable
    before = inode(folder)
    again = store(files, small_tokenizer, folder)
    assert inode(folder) == before
    assert again.report.n_pairs == 2
    assert again[1].sides()[0] == small_tokenizer.encode("the dog")


CHANGES: dict[str, Callable[[tuple[Path, Path], Path], object]] = {
    "a file": lambda files, folder: files[0].write_bytes(b"x\ny\n"),
    "a time": lambda files, folder: os.utime(files[1], ns=(1, 1)),
    "a missing part": lambda files, folder: (folder / "data/starts.bin").unlink(),
    "a part cut": lambda files, folder: os.truncate(folder / "data/ids.bin", 2),
    "an odd part": lambda files, folder: os.truncate(folder / "data/lengths.bin", 3),
    "a broken index": lambda files, folder: (folder / "data/index.json").write_bytes(b"{"),
    "another index": lambda files, folder: (folder / "data/index.json").write_bytes(b"[]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_store_is_made_again_after_a_change_of(
    change: str, reusable: tuple[tuple[Path, Path], Path], small_tokenizer: Tokenizer
) -> None:
    files, folder = reusable
    CHANGES[change](files, folder)
    fresh = store(files, small_tokenizer, folder.parent / f"{folder.name}-fresh")
    corpus = store(files, small_tokenizer, folder)
    assert [corpus[i].sides() for i in range(2)] == [fresh[i].sides() for i in range(2)]
    assert corpus.digest == fresh.digest


def test_a_store_is_made_again_for_other_limits_and_tokenizers(
    reusable: tuple[tuple[Path, Path], Path], small_tokenizer: Tokenizer
) -> None:
    files, folder = reusable
    digests = {store(files, small_tokenizer, folder, max_len=n).digest for n in (100, 50)}
    digests.add(store(files, WideTokenizer(), folder).digest)  # type: ignore[arg-type]
    assert len(digests) == 3


# The digest is that of the text


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", lambda data: data),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        ("", lambda data: data.replace(b"\n", b"\r\n")),
        ("", lambda data: b"\xef\xbb\xbf" + data),
        ("", lambda data: data[:-1]),
    ],
    ids=["plain", "gz", "xz", "bz2", "CRLF", "BOM", "no last line feed"],
)
def test_the_same_text_has_the_same_digest_however_it_is_stored(
    suffix: str,
    pack: Callable[[bytes], bytes],
    parallel: tuple[Path, Path],
    small_corpus: Corpus,
    small_tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    packed = tmp_path / f"train.src{suffix}"
    packed.write_bytes(pack(parallel[0].read_bytes()))
    corpus = store((packed, parallel[1]), small_tokenizer, tmp_path)
    assert corpus.digest == small_corpus.digest


def test_other_text_has_another_digest(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [(b"a\nb\n", b"c\nd\n"), (b"a\nc\n", b"b\nd\n"), (b"a\n", b"c\n"), (b"ab\n", b"c\n")]
    digests = {
        store(write(tmp_path / str(i), *text), small_tokenizer, tmp_path / str(i)).digest
        for i, text in enumerate(texts)
    }
    assert len(digests) == len(texts)


# Files that do not fit together


@pytest.mark.parametrize(("n_src", "n_tgt"), [(3, 2), (2, 5), (0, 1), (4, 0)])
@pytest.mark.parametrize("packed", [False, True])
def test_different_numbers_of_lines_are_refused_with_both_counts(
    n_src: int, n_tgt: int, packed: bool, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    pack, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    src, tgt = tmp_path / f"s{suffix}", tmp_path / f"t{suffix}"
    src.write_bytes(pack(b"x\n" * n_src))
    tgt.write_bytes(pack(b"x\n" * n_tgt))
    message = rf"{src} has {n_src} lines and {tgt} has {n_tgt}; "
    with pytest.raises(UserError, match=message):
        list(read_pairs([src], [tgt]))
    if not packed:
        with pytest.raises(UserError, match=message):
            check_files([src], [tgt])
    with pytest.raises(UserError, match=message):
        store((src, tgt), small_tokenizer, tmp_path)
    assert not (tmp_path / "data").exists()


def test_files_come_in_pairs(parallel: tuple[Path, Path]) -> None:
    for src, tgt in (([], []), (parallel, parallel[:1])):
        with pytest.raises(UserError, match="give them in pairs"):
            check_files(src, tgt)


def test_pairs_and_bytes_are_added_up_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo\nthree")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"1\n2\n3\n"))
    (tmp_path / "c").write_bytes(b"x\n" * 4)
    a, b, c = (tmp_path / name for name in ("a", "b.gz", "c"))
    assert check_files([a], [b]) == (3, 13 + 6)
    assert check_files([a, c], [b, c]) == (3 + 4, 13 + 6 + 8 + 8)


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="is no regular file"):
            check_files([path], [path])


def test_a_missing_file_is_named(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    missing = tmp_path / "missing", tmp_path / "missing"
    with pytest.raises(UserError, match=r"missing: cannot be read \(No such file"):
        check_files(missing[:1], missing[1:])
    with pytest.raises(UserError, match=r"missing: cannot be read \(No such file"):
        store(missing, small_tokenizer, tmp_path)


def test_text_that_is_not_utf8_is_refused_by_line(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = write(tmp_path, b"a\nb\n", b"a\n\xff\n")
    with pytest.raises(UserError, match=r"b: line 2"):
        store(files, small_tokenizer, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(parts=st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"x", b" ", b"\xef\xbb\xbf"])))
def test_lines_are_counted_as_they_are_read(parts: list[bytes], tmp_path: Path) -> None:
    content = b"".join(parts)
    assume(content != b"\xef\xbb\xbf")  # a mark before nothing counts as a line, and is none
    src, tgt = tmp_path / "counted", tmp_path / "lines"
    src.write_bytes(content)
    tgt.write_bytes(b"x\n" * sum(1 for _ in read_lines(src)))
    check_files([src], [tgt])


# Sampling


def test_sampled_pieces_spell_the_same_text(
    small_corpus: Corpus, small_tokenizer: Tokenizer
) -> None:
    examples = [small_corpus[i] for i in range(50)]
    sampled = resample(examples, small_tokenizer, 0.5, seed=1)
    for before, after in zip(examples, sampled, strict=True):
        assert after.index == before.index
        for old, new in zip(before.sides(), after.sides(), strict=True):
            assert small_tokenizer.decode(new) == small_tokenizer.decode(old)
    assert any(a.sides() != b.sides() for a, b in zip(examples, sampled, strict=True))


def test_what_is_sampled_depends_on_the_example_and_the_seed_alone(
    small_corpus: Corpus, small_tokenizer: Tokenizer
) -> None:
    examples = [small_corpus[i] for i in range(20)]
    together = resample(examples, small_tokenizer, 0.5, seed=1)
    shuffled = random.Random(0).sample(examples, 20)
    for example in resample(shuffled, small_tokenizer, 0.5, seed=1):
        assert example.sides() == together[example.index].sides()
    other = resample(examples, small_tokenizer, 0.5, seed=2)
    assert [e.sides() for e in other] != [e.sides() for e in together]


def test_without_dropout_the_pieces_stay(small_corpus: Corpus, small_tokenizer: Tokenizer) -> None:
    examples = [small_corpus[i] for i in range(20)]
    same: list[Example] = resample(examples, small_tokenizer, 0.0, seed=1)
    assert [e.sides() for e in same] == [e.sides() for e in examples]


def test_the_report_says_what_is_in_the_index(
    parallel: tuple[Path, Path], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    corpus = store(parallel, small_tokenizer, tmp_path)
    index = json.loads((tmp_path / "data/index.json").read_bytes())
    assert index["report"] == dataclasses.asdict(corpus.report)
