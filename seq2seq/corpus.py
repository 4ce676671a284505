"""Aligned text files become a memory-mapped store of ids, once.

    corpus = open_corpus(Text(src_files, tgt_files, tokenizer, max_len), folder)
    corpus[i]                                   Example
    corpus.examples(np.array([5, 3, 3]))        [Example, Example, Example]

The store is read through the operating system's page cache, so memory does not grow with the corpus.
It is used again as long as it is whole (by checksums) and the text, the tokenizer and the limits are the
same: files that nobody has touched are not read again, and others are compared by a hash of their text,
`corpus.digest`, whatever file or compression it comes from.
"""

import hashlib
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from seq2seq.aligned import Identity, identity, n_lines
from seq2seq.batch import Example
from seq2seq.blocks import CorpusReport, Text
from seq2seq.storage import replace_folder, temporary_folder
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import publish_file, read_file, read_json, write, write_json

_PART = 1024  # pairs that are worked on at a time, so that little memory is used
_FORMAT = 4
_INDEX = "index.json"
_FILES = ("ids.bin", "starts.bin", "lengths.bin")
STORE_FILES = (*_FILES, _INDEX)
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """Sentence pairs as ids, on disk.

    Attributes:
        ids: All pairs of the store one after the other, source then target, without framing.
        starts: Where each pair begins in `ids`, (n,).
        lengths: Source and target tokens of each pair, counting EOS, (n, 2).
        report: What was kept and skipped.
        digest: SHA-256 of the text and of what turned it into ids.
        parts: How many pairs of the store came from each pair of files.
        files: What is mapped behind the arrays.
        held: Pairs of the store that are set aside and not counted, ascending, (h,).
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    report: CorpusReport
    digest: str
    parts: tuple[int, ...]
    files: tuple[mmap.mmap, ...]
    held: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.starts) - len(self.held)

    def __getitem__(self, index: int) -> Example:
        return self.examples(np.array([index]))[0]

    def examples(self, indices: np.ndarray) -> list[Example]:
        """Pairs in the order asked for, copied out of the store.

        They are read in the order of the store, some at a time, and then the pages they lie on are
        unmapped, as what is mapped counts as memory of this process.
        """
        order = np.argsort(indices, kind="stable")
        found = [Example((), (), 0)] * len(indices)
        for first in range(0, len(order), _PART):
            places = order[first : first + _PART]
            rows = self._rows(indices[places])
            starts, lengths = self.starts[rows], self.lengths[rows].astype(np.int64) - 1
            middles, ends = starts + lengths[:, 0], starts + lengths.sum(axis=1)
            for place, start, middle, end in zip(places, starts, middles, ends, strict=True):
                src, tgt = self.ids[start:middle].copy(), self.ids[middle:end].copy()
                found[place] = Example(src, tgt, int(indices[place]))
            for file in self.files:
                file.madvise(mmap.MADV_DONTNEED)
        return found

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many pairs came from each pair of files, without those that are set aside."""
        ends = np.cumsum(self.parts)
        return tuple(np.diff(ends - np.searchsorted(self.held, ends), prepend=0).tolist())

    @property
    def mean_lengths(self) -> tuple[float, ...]:
        """Tokens of a pair from each pair of files, both sides with their EOS; 0 where there is none."""
        firsts = np.cumsum((0, *self.parts)).tolist()
        places = [self.starts[i] if i < len(self.starts) else len(self.ids) for i in firsts]
        sums = np.diff(np.array(places, dtype=np.int64))
        return tuple((sums / np.maximum(self.parts, 1) + 2 * np.sign(self.parts)).tolist())

    def without(self, indices: Sequence[int]) -> "Corpus":
        """The same store with these pairs set aside; those behind them move up."""
        rows = self._rows(np.array(indices, dtype=np.int64))
        return replace(self, held=np.union1d(self.held, rows))

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        """Where pairs are in the store: further on by the number of those set aside before them."""
        n_before = self.held - np.arange(len(self.held))  # pairs that count before each set aside
        return indices + np.searchsorted(n_before, indices, side="right")


def open_corpus(
    text: Text,
    folder: Path,
    progress: Callable[[int], None] = lambda _: None,
    check: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """Open the store of a text, making it first where there is none of the same text.

    Args:
        text: Its files are regular ones, as they may be read more than once.
        folder: Where the store is, or will be.
        progress: Told the number of pairs read so far.
        check: Told the digest of a store before anything that is there is replaced; refuses it by
            raising.

    Raises:
        UserError: When the text cannot be read or no usable pair is left.
    """
    key = _key(text)
    if (unchanged := _reopen(folder, {"key": key})) is not None:
        return unchanged
    if (known := _recognised(text, folder)) is not None:
        check(known.digest)
        publish_file(folder / _INDEX, _index(text, key, known, _checksums(folder)))
        return known
    return _build(text, folder, key, progress, check)


def find_corpus(text: Text, folder: Path) -> Corpus:
    """Open the store that the first of several processes has opened with `open_corpus`; writes nothing.

    Raises:
        UserError: When it is not that of this text.
    """
    if (unchanged := _reopen(folder, {"key": _key(text)})) is not None:
        return unchanged
    if (known := _recognised(text, folder)) is not None:
        return known
    raise UserError(
        "one process reads another text than the first, or the text has changed meanwhile; "
        "give all of them the same files"
    )


def known_counts(folder: Path) -> dict[Identity, int]:
    """Lines of the text files that the store in `folder` was made from, if there is one."""
    try:
        index = read_json(read_file(folder / _INDEX), str(folder / _INDEX))
        return {
            (path, inode, size, written, changed): int(n)
            for path, inode, size, written, changed, n in index["files"]
        }
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return {}


def some_sources(folder: Path, tokenizer: Tokenizer, n: int) -> list[str]:
    """Source sentences of a store, evenly spread: at most `n`; none where there is no store."""
    corpus = _reopen(folder, {})
    if corpus is None:
        return []
    rows = np.linspace(0, len(corpus) - 1, min(n, len(corpus))).astype(int)
    return tokenizer.decode_batch([corpus[int(row)].sides()[0] for row in rows])


def _key(text: Text) -> str:
    """A name for the unread text that changes when it does."""
    files = [identity(path) for path in (*text.src, *text.tgt)]
    return hashlib.sha256(repr((_FORMAT, text.origin(), files)).encode()).hexdigest()


def _reopen(folder: Path, said: Mapping[str, object]) -> Corpus | None:
    """The store in `folder` if there is one whose index says all that, else None."""
    try:
        index = read_json(read_file(folder / _INDEX), str(folder / _INDEX))
        if any(index[name] != value for name, value in {"format": _FORMAT, **said}.items()):
            return None
        if index["checksums"] != _checksums(folder):
            return None
        report = CorpusReport(**index["report"])
        return _map(folder, report, index["digest"], index["dtype"], tuple(index["parts"]))
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return None  # missing, half-written or foreign: it is only a cache, and is made again


def _recognised(text: Text, folder: Path) -> Corpus | None:
    """The store in `folder` if it was made from the same text, which now lies in other files."""
    corpus = _reopen(folder, {"origin": text.origin()})
    if corpus is None or len(corpus.parts) != len(text.src):
        return None
    if corpus.report.n_lines != sum(n_lines(path) for path in text.src):
        return None
    digest = hashlib.sha256(text.origin().encode())
    for lines in text.lines():
        digest.update(lines)
    return corpus if _finished(digest, corpus.parts) == corpus.digest else None


def _finished(digest: "hashlib._Hash", parts: Sequence[int]) -> str:
    """The digest of a corpus from that of its text."""
    if len(parts) > 1:
        digest.update(repr(list(parts)).encode())  # the same text in other corpora is another one
    return digest.hexdigest()


def _map(
    folder: Path, report: CorpusReport, digest: str, dtype: str, parts: tuple[int, ...]
) -> Corpus:
    if dtype not in ("uint16", "uint32"):
        raise ValueError(dtype)
    files = []
    for name in _FILES:
        with (folder / name).open("rb") as file:
            files.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    ids = np.frombuffer(files[0], dtype=dtype)
    starts = np.frombuffer(files[1], dtype=np.int64)
    lengths = np.frombuffer(files[2], dtype=np.uint16).reshape(-1, 2)
    n_tokens = report.n_src_tokens + report.n_tgt_tokens
    if (len(ids), len(starts), len(lengths)) != (n_tokens, report.n_pairs, report.n_pairs):
        raise ValueError("sizes")
    if sum(parts) != report.n_pairs:
        raise ValueError("parts")
    return Corpus(ids, starts, lengths, report, digest, parts, tuple(files))


def _build(
    text: Text,
    folder: Path,
    key: str,
    progress: Callable[[int], None],
    check: Callable[[str], None],
) -> Corpus:
    """Read, filter and encode everything into a new store."""
    dtype = "uint16" if text.tokenizer.vocab_size <= 1 << 16 else "uint32"
    digest = hashlib.sha256(text.origin().encode())
    parts = [0] * len(text.src)
    report = CorpusReport()
    with temporary_folder(folder) as new:
        with (
            (new / "ids.bin").open("wb") as ids_file,
            (new / "starts.bin").open("wb") as starts_file,
            (new / "lengths.bin").open("wb") as lengths_file,
        ):
            for block in text.blocks():
                first = report.n_src_tokens + report.n_tgt_tokens
                ends = first + block.sizes.sum(axis=1).cumsum()
                digest.update(block.text)
                ids_file.write(block.ids.astype(dtype).tobytes())
                starts_file.write((ends - block.sizes.sum(axis=1)).astype(np.int64).tobytes())
                lengths_file.write((block.sizes + 1).astype(np.uint16).tobytes())
                parts[block.part] += block.report.n_pairs
                report += block.report
                progress(report.n_lines)
            for file in (ids_file, starts_file, lengths_file):  # before the index vouches for them
                file.flush()
                os.fsync(file.fileno())
        _check_usable(report, text)
        corpus = _map(new, report, _finished(digest, parts), dtype, tuple(parts))
        check(corpus.digest)
        write(new / _INDEX, _index(text, key, corpus, _checksums(new)))
        replace_folder(new, folder)
    return corpus


def _checksums(folder: Path) -> list[int]:
    """CRC-32 of each file of a store."""
    sums = []
    for name in _FILES:
        crc = 0
        with (folder / name).open("rb") as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
        sums.append(crc)
    return sums


def _index(text: Text, key: str, corpus: Corpus, checksums: list[int]) -> bytes:
    """What `index.json` says of a store."""
    index = {
        "format": _FORMAT,
        "key": key,
        "origin": text.origin(),
        "digest": corpus.digest,
        "dtype": corpus.ids.dtype.name,
        "parts": corpus.parts,
        "checksums": checksums,
        "files": [[*identity(path), n_lines(path)] for path in (*text.src, *text.tgt)],
        "report": asdict(corpus.report),
    }
    return write_json(index)


def _check_usable(report: CorpusReport, text: Text) -> None:
    if report.n_pairs:
        return
    why = f"{report.n_lines} lines"
    if report.n_empty:
        why += f", {report.n_empty} with an empty side"
    if report.n_too_long:
        why += (
            f", {report.n_too_long} with more than data.max_len = {text.max_len} tokens a side "
            f"(the longest has {report.longest}; --set data.max_len=N takes longer ones)"
        )
    raise UserError(f"{text.src[0]}, {text.tgt[0]}: no usable pairs ({why})")
