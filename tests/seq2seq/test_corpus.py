import bz2
import dataclasses
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seq2seq.aligned import check_files, identity
from seq2seq.blocks import Text
from seq2seq.corpus import Corpus, find_corpus, known_counts, open_corpus
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError


def write(folder: Path, src: bytes, tgt: bytes) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a").write_bytes(src)
    (folder / "b").write_bytes(tgt)
    return folder / "a", folder / "b"


def store(
    files: tuple[Path, Path], tokenizer: Tokenizer, folder: Path, max_len: int = 100
) -> Corpus:
    return open_corpus(Text(files[:1], files[1:], tokenizer, max_len), folder / "data")


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
        Text([parallel[0], extra[0]], [parallel[1], extra[1]], small_tokenizer, 100),
        tmp_path / "data",
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
    assert report.longest == len(small_tokenizer.encode(long.decode().strip()))
    assert small_tokenizer.decode(corpus[0].sides()[0]) == "a"


def test_of_several_processes_only_the_first_writes(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def follow(files: tuple[Path, Path]) -> Corpus:
        return find_corpus(Text(files[:1], files[1:], small_tokenizer, 100), tmp_path / "data")

    files = write(tmp_path, b"the dog\n", b"dog the\n")
    with pytest.raises(UserError, match="another text than the first"):
        follow(files)
    first = store(files, small_tokenizer, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    (tmp_path / "elsewhere").mkdir()  # as on another machine
    copies = write(tmp_path / "elsewhere", b"the dog\n", b"dog the\n")
    assert follow(files).digest == follow(copies).digest == first.digest
    with pytest.raises(UserError, match="another text than the first"):
        follow(write(tmp_path / "elsewhere", b"the cat\n", b"cat the\n"))
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_spaces_around_a_sentence_are_not_learnt(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """What is translated and scored is read without them, too."""
    files = write(tmp_path, b" the dog \n\xc2\xa0a cat\n", b"dog the\t\ncat  a \n")
    corpus = store(files, small_tokenizer, tmp_path)
    sides = [side for i in (0, 1) for side in corpus[i].sides()]
    assert small_tokenizer.decode_batch(sides) == ["the dog", "dog the", "a cat", "cat  a"]
    (tmp_path / "bare").mkdir()
    bare = write(tmp_path / "bare", b"the dog\na cat\n", b"dog the\ncat  a\n")
    assert store(bare, small_tokenizer, tmp_path / "bare").digest == corpus.digest


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
    text = Text(parallel[:1], parallel[1:], small_tokenizer, 100)
    open_corpus(text, tmp_path / "data", told.append)
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


@pytest.mark.parametrize("name", ["ids.bin", "starts.bin", "lengths.bin", "index.json"])
def test_a_damaged_store_is_made_again(
    name: str, reusable: tuple[tuple[Path, Path], Path], small_tokenizer: Tokenizer
) -> None:
    files, folder = reusable
    whole = {p.name: p.read_bytes() for p in (folder / "data").iterdir()}
    (folder / "data" / name).write_bytes(b"\xff" * 3 + whole[name][3:])
    store(files, small_tokenizer, folder)
    assert {p.name: p.read_bytes() for p in (folder / "data").iterdir()} == whole


def test_the_name_of_a_file_need_not_be_text(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = write(tmp_path / os.fsdecode(b"\xff"), b"a dog\n", b"ein Hund\n")
    assert len(store(files, small_tokenizer, tmp_path)) == 1
    before = inode(tmp_path)
    store(files, small_tokenizer, tmp_path)
    assert inode(tmp_path) == before


def give_another_time(src: Path) -> Path:
    os.utime(src, ns=(1, 1))
    return src


def rename(src: Path) -> Path:
    return src.rename(src.with_name("renamed"))


def replace_by_a_copy(src: Path) -> Path:
    copy = src.with_name("copy")
    copy.write_bytes(src.read_bytes())
    return copy.replace(src)


def pack(src: Path) -> Path:
    packed = src.with_suffix(".gz")
    packed.write_bytes(gzip.compress(src.read_bytes()))
    return packed


@pytest.mark.parametrize("touch", [give_another_time, rename, replace_by_a_copy, pack])
def test_a_store_is_used_again_for_the_same_text_in_touched_files(
    touch: Callable[[Path], Path],
    reusable: tuple[tuple[Path, Path], Path],
    small_tokenizer: Tokenizer,
) -> None:
    (src, tgt), folder = reusable
    before, digest = inode(folder), store((src, tgt), small_tokenizer, folder).digest
    src = touch(src)
    corpus = store((src, tgt), small_tokenizer, folder)
    assert (inode(folder), corpus.digest) == (before, digest)
    assert corpus[1].sides()[0] == small_tokenizer.encode("the dog")
    assert identity(src) in known_counts(folder / "data")  # next time it need not be read


def test_other_text_of_the_same_size_and_time_is_noticed(
    reusable: tuple[tuple[Path, Path], Path], small_tokenizer: Tokenizer
) -> None:
    (src, tgt), folder = reusable
    times = src.stat().st_atime_ns, src.stat().st_mtime_ns
    src.write_bytes(src.read_bytes().replace(b"dog", b"cat"))
    os.utime(src, ns=times)
    corpus = store((src, tgt), small_tokenizer, folder)
    assert corpus[1].sides()[0] == small_tokenizer.encode("the cat")


def test_the_same_lines_in_other_corpora_are_another_store(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one = write(tmp_path / "1", b"a\n", b"b\n")
    two = write(tmp_path / "2", b"b\nc\n", b"c\nd\n")
    both = write(tmp_path / "3", b"a\nb\nc\n", b"b\nc\nd\n")
    open_corpus(Text([one[0], two[0]], [one[1], two[1]], small_tokenizer, 100), tmp_path / "data")
    assert store(both, small_tokenizer, tmp_path).parts == (3,)


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


@pytest.mark.parametrize(("n_src", "n_tgt"), [(3, 2), (0, 1)])
def test_different_numbers_of_lines_leave_no_store(
    n_src: int, n_tgt: int, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = write(tmp_path, b"x\n" * n_src, b"x\n" * n_tgt)
    with pytest.raises(UserError, match=f"has {n_src} lines and .* has {n_tgt}; "):
        store(files, small_tokenizer, tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_missing_file_is_named(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    missing = tmp_path / "missing", tmp_path / "missing"
    with pytest.raises(UserError, match=r"missing: cannot be read \(No such file"):
        store(missing, small_tokenizer, tmp_path)


def test_text_that_is_not_utf8_is_refused_by_line(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    files = write(tmp_path, b"a\nb\n", b"a\n\xff\n")
    with pytest.raises(UserError, match=r"b: line 2"):
        store(files, small_tokenizer, tmp_path)


# Reading a part of it


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(indices=st.lists(st.integers(0, 199), max_size=50))
def test_pairs_come_in_the_order_asked_for_and_as_often(
    indices: list[int], small_corpus: Corpus
) -> None:
    found = small_corpus.examples(np.array(indices, dtype=np.int64))
    assert [e.index for e in found] == indices
    assert [e.sides() for e in found] == [small_corpus[i].sides() for i in indices]


def test_more_pairs_than_are_read_at_a_time(small_corpus: Corpus) -> None:
    indices = np.arange(5000) * 7 % 200
    assert [e.index for e in small_corpus.examples(indices)] == indices.tolist()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(first=st.sets(st.integers(0, 199), max_size=30), second=st.sets(st.integers(0, 169)))
def test_what_is_set_aside_leaves_and_the_others_move_up(
    first: set[int], second: set[int], small_corpus: Corpus
) -> None:
    left = list(range(200))
    corpus = small_corpus
    for chosen in (first, second):
        corpus = corpus.without(sorted(chosen))
        left = [row for i, row in enumerate(left) if i not in chosen]
    assert len(corpus) == len(left)
    for index, row in enumerate(left):
        assert corpus[index].sides() == small_corpus[row].sides()


def test_beyond_the_end_there_is_nothing(small_corpus: Corpus) -> None:
    corpus = small_corpus.without([3, 198])
    with pytest.raises(IndexError):
        corpus[198]


def test_pairs_are_counted_by_corpus(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    a, b = (
        write(tmp_path / "1", b"a\n\nb\n", b"a\nb\nc\n"),
        write(tmp_path / "2", b"c\n", b"c\n"),
    )
    both = open_corpus(Text([a[0], b[0]], [a[1], b[1]], small_tokenizer, 100), tmp_path / "data")
    again = open_corpus(Text([a[0], b[0]], [a[1], b[1]], small_tokenizer, 100), tmp_path / "data")
    assert both.parts == again.parts == both.sizes == (2, 1)
    assert both.without([0]).sizes == (1, 1)
    assert both.without([0, 2]).sizes == (1, 0)


def test_the_same_text_in_other_corpora_is_another_corpus(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = [b"a\n", b"b\nc\n", b"a\nb\n", b"c\n"]
    files = [write(tmp_path / str(i), text, text) for i, text in enumerate(texts)]
    digests = {
        open_corpus(
            Text([a[0], b[0]], [a[1], b[1]], small_tokenizer, 100), tmp_path / f"data{i}"
        ).digest
        for i, (a, b) in enumerate([files[:2], files[2:]])
    }
    assert len(digests) == 2


def test_text_of_many_chunks_is_stored_in_order(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [f"{i} dog" for i in range(20_000)]
    text = "".join(f"{line}\n" for line in lines).encode()
    corpus = store(write(tmp_path, text, text), small_tokenizer, tmp_path)
    shown = range(0, 20_000, 997)
    assert [small_tokenizer.decode(corpus[i].sides()[1]) for i in shown] == [
        lines[i] for i in shown
    ]


# What it remembers of the text


def test_text_that_is_stored_is_not_read_again_to_be_counted(
    reusable: tuple[tuple[Path, Path], Path],
) -> None:
    (src, tgt), folder = reusable
    known = known_counts(folder / "data")
    assert set(known) == {identity(src), identity(tgt)}
    told = dict.fromkeys(known, 7)
    assert check_files([src], [tgt], told) == 7
    os.utime(src, ns=(1, 1))
    os.utime(tgt, ns=(1, 1))
    assert check_files([src], [tgt], told) == 2


@pytest.mark.parametrize("index", [b"", b"{}", b"[1]", b'{"files": 3}', b'{"files": [["a", 1]]}'])
def test_a_broken_index_remembers_nothing(index: bytes, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(index)
    assert known_counts(tmp_path) == {}
    assert known_counts(tmp_path / "nowhere") == {}


def test_the_report_says_what_is_in_the_index(
    parallel: tuple[Path, Path], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    corpus = store(parallel, small_tokenizer, tmp_path)
    index = json.loads((tmp_path / "data/index.json").read_bytes())
    assert index["report"] == dataclasses.asdict(corpus.report)
