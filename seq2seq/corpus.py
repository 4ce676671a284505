"""Aligned text files become a memory-mapped store of ids, once.

    corpus = open_corpus(src_files, tgt_files, tokenizer, max_len, folder)
    corpus.lengths          (n, 2): source and target tokens of each pair, EOS counted
    corpus[i]               Example

The store is read through the operating system's page cache, so memory does not grow with the corpus.
It is used again as long as the text files, the tokenizer and the limits are the same; `corpus.digest`
is a hash of the text itself, whatever file or compression it came from.
"""

import hashlib
import itertools
import json
import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from seq2seq.batch import Example
from seq2seq.storage import read_json, remove_folder, temporary_folder
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.lines import measure, read_lines

_CHUNK = 8192  # pairs that are encoded at once
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """What was found in the text files.

    Attributes:
        n_lines: Pairs of lines read.
        n_pairs: Of these, kept.
        n_empty: Skipped because a side is empty or blank.
        n_too_long: Skipped because a side has more than `max_len` tokens.
        longest: Tokens of the longest side seen.
        n_src_tokens: In the kept pairs, without EOS.
        n_tgt_tokens: In the kept pairs, without EOS.
    """

    n_lines: int
    n_pairs: int
    n_empty: int
    n_too_long: int
    longest: int
    n_src_tokens: int
    n_tgt_tokens: int


@dataclass(frozen=True)
class Corpus:
    """Sentence pairs as ids, on disk.

    Attributes:
        ids: All pairs one after the other, source then target, without framing.
        starts: Where each pair begins in `ids`, (n,).
        lengths: Source and target tokens of each pair, counting EOS, (n, 2).
        report: What was kept and skipped.
        digest: SHA-256 of the text and of what turned it into ids.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    report: CorpusReport
    digest: str

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Example:
        start = int(self.starts[index])
        n_src, n_tgt = (int(n) - 1 for n in self.lengths[index])
        middle = start + n_src
        return Example(self.ids[start:middle], self.ids[middle : middle + n_tgt], int(index))


def resample(
    examples: Sequence[Example], tokenizer: Tokenizer, dropout: float, seed: int
) -> list[Example]:
    """The same sentences cut into pieces anew, at random (BPE-dropout, Provilkov et al. 2020).

    What becomes of an example depends on it and the seed, not on the others.
    """
    texts = iter(tokenizer.decode_batch([side for e in examples for side in e.sides()]))
    resampled = []
    for example in examples:
        rng = random.Random(seed ^ example.index)
        src, tgt = (tokenizer.sample(next(texts), dropout, rng) for _ in range(2))
        resampled.append(Example(src, tgt, example.index))
    return resampled


def read_pairs(src: Sequence[Path], tgt: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the aligned lines of several corpora, one corpus after the other.

    Raises:
        UserError: When two files differ in their number of lines, naming both counts.
    """
    for src_file, tgt_file in zip(src, tgt, strict=True):
        pairs = itertools.zip_longest(read_lines(src_file), read_lines(tgt_file))
        for number, (s, t) in enumerate(pairs, start=1):
            if s is None or t is None:
                rest = 1 + sum(1 for _ in pairs)
                n_src = number - 1 + (rest if s is not None else 0)
                n_tgt = number - 1 + (rest if t is not None else 0)
                raise UserError(_unequal(src_file, n_src, tgt_file, n_tgt))
            yield s, t


def check_files(src: Sequence[Path], tgt: Sequence[Path]) -> tuple[int, int]:
    """Refuse what can be refused at once: other numbers of files, or of lines.

    Returns:
        Pairs of lines, and bytes of text, both sides together, uncompressed.

    Raises:
        UserError: Naming the files and the counts, or the file that cannot be read, or only once.
    """
    if len(src) != len(tgt) or not src:
        raise UserError(f"--src names {len(src)} files and --tgt {len(tgt)}; give them in pairs")
    n_pairs = n_bytes = 0
    for src_file, tgt_file in zip(src, tgt, strict=True):
        (n_src, src_bytes), (n_tgt, tgt_bytes) = measure(src_file), measure(tgt_file)
        if n_src != n_tgt:
            raise UserError(_unequal(src_file, n_src, tgt_file, n_tgt))
        n_pairs, n_bytes = n_pairs + n_src, n_bytes + src_bytes + tgt_bytes
    return n_pairs, n_bytes


def _unequal(src: Path, n_src: int, tgt: Path, n_tgt: int) -> str:
    return (
        f"{src} has {n_src} lines and {tgt} has {n_tgt}; "
        "line n of one must be the translation of line n of the other"
    )


def open_corpus(
    src: Sequence[Path],
    tgt: Sequence[Path],
    tokenizer: Tokenizer,
    max_len: int,
    folder: Path,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Open the store of these files, making it first where there is none.

    Args:
        src: Source files.
        tgt: Target files, aligned with them.
        tokenizer: Turns lines into ids.
        max_len: Pairs with more tokens on a side are skipped.
        folder: Where the store is, or will be.
        progress: Told the number of pairs read so far.

    Raises:
        UserError: When the text cannot be read or no usable pair is left.
    """
    key = _stat_key([*src, *tgt], tokenizer, max_len)
    corpus = _reopen(folder, key) if key else None
    if corpus is None:
        corpus = _build(src, tgt, tokenizer, max_len, folder, key, progress)
    return corpus


def some_sources(folder: Path, tokenizer: Tokenizer, n: int) -> list[str]:
    """Source sentences of a store, evenly spread: at most `n`; none where there is no store."""
    corpus = _reopen(folder, None)
    if corpus is None:
        return []
    rows = np.linspace(0, len(corpus) - 1, min(n, len(corpus))).astype(int)
    return tokenizer.decode_batch([corpus[int(row)].sides()[0] for row in rows])


def _stat_key(files: Sequence[Path], tokenizer: Tokenizer, max_len: int) -> str | None:
    """A name for the unread files that changes when they do; None for what is no regular file."""
    facts: list[object] = [_FORMAT, max_len, _tokenizer_digest(tokenizer)]
    for path in files:
        try:
            info = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(info.st_mode):
            return None
        facts += [str(path.resolve()), info.st_size, info.st_mtime_ns]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _tokenizer_digest(tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _reopen(folder: Path, key: str | None) -> Corpus | None:
    """The store in `folder` if it was made from the files that `key` names (None: any), else None."""
    try:
        index = read_json((folder / "index.json").read_bytes(), str(folder / "index.json"))
        if key not in (None, index["key"]) or index["format"] != _FORMAT:
            return None
        report = CorpusReport(**index["report"])
        return _map(folder, report, index["digest"], index["dtype"])
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return None  # missing, half-written or foreign: it is only a cache, and is made again


def _map(folder: Path, report: CorpusReport, digest: str, dtype: str) -> Corpus:
    if dtype not in ("uint16", "uint32"):
        raise ValueError(dtype)
    ids = np.memmap(folder / "ids.bin", dtype=dtype, mode="r")
    lengths = np.memmap(folder / "lengths.bin", dtype=np.uint16, mode="r").reshape(-1, 2)
    starts = np.memmap(folder / "starts.bin", dtype=np.int64, mode="r")
    n_tokens = report.n_src_tokens + report.n_tgt_tokens
    if (len(ids), len(lengths), len(starts)) != (n_tokens, report.n_pairs, report.n_pairs):
        raise ValueError("sizes")
    return Corpus(ids, starts, lengths, report, digest)


def _build(
    src: Sequence[Path],
    tgt: Sequence[Path],
    tokenizer: Tokenizer,
    max_len: int,
    folder: Path,
    key: str | None,
    progress: Callable[[int], None] | None,
) -> Corpus:
    """Read, filter and encode everything into a new store."""
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    digest = hashlib.sha256(f"{_tokenizer_digest(tokenizer)} {max_len}\n".encode())
    n = dict.fromkeys(CorpusReport.__dataclass_fields__, 0)
    with temporary_folder(folder) as new:
        with (
            (new / "ids.bin").open("wb") as ids_file,
            (new / "lengths.bin").open("wb") as lengths_file,
            (new / "starts.bin").open("wb") as starts_file,
        ):
            pairs = read_pairs(src, tgt)
            while chunk := list(itertools.islice(pairs, _CHUNK)):
                digest.update("".join(f"{s}\n{t}\n" for s, t in chunk).encode())
                full = [pair for pair in chunk if pair[0].strip() and pair[1].strip()]
                rows = _encode_pairs(full, tokenizer)
                kept = [(s, t) for s, t in rows if max(len(s), len(t)) <= max_len]
                sizes = np.array([(len(s), len(t)) for s, t in kept], dtype=np.int64).reshape(-1, 2)
                first = n["n_src_tokens"] + n["n_tgt_tokens"]
                ends = first + sizes.sum(axis=1).cumsum()
                flat = [i for s, t in kept for side in (s, t) for i in side]
                ids_file.write(np.array(flat, dtype=dtype).tobytes())
                lengths_file.write((sizes + 1).astype(np.uint16).tobytes())
                starts_file.write((ends - sizes.sum(axis=1)).astype(np.int64).tobytes())
                n["n_lines"] += len(chunk)
                n["n_empty"] += len(chunk) - len(full)
                n["n_too_long"] += len(rows) - len(kept)
                n["n_pairs"] += len(kept)
                n["longest"] = max([n["longest"], *(len(side) for pair in rows for side in pair)])
                n["n_src_tokens"] += int(sizes[:, 0].sum())
                n["n_tgt_tokens"] += int(sizes[:, 1].sum())
                if progress is not None:
                    progress(n["n_lines"])
            for file in (ids_file, lengths_file, starts_file):  # before the index vouches for them
                file.flush()
                os.fsync(file.fileno())
        report = CorpusReport(**n)
        _check_usable(report, src[0], tgt[0], max_len)
        index = {
            "format": _FORMAT,
            "key": key,
            "digest": digest.hexdigest(),
            "dtype": dtype,
            "report": asdict(report),
        }
        (new / "index.json").write_bytes(json.dumps(index, indent=1).encode())
        remove_folder(folder)
        new.rename(folder)
    return _map(folder, report, digest.hexdigest(), dtype)


def _encode_pairs(
    pairs: list[tuple[str, str]], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int]]]:
    sides = tokenizer.encode_batch([side for pair in pairs for side in pair])
    return list(zip(sides[0::2], sides[1::2], strict=True))


def _check_usable(report: CorpusReport, src: Path, tgt: Path, max_len: int) -> None:
    if report.n_pairs:
        return
    why = f"{report.n_lines} lines"
    if report.n_empty:
        why += f", {report.n_empty} with an empty side"
    if report.n_too_long:
        why += (
            f", {report.n_too_long} with more than data.max_len = {max_len} tokens a side "
            f"(the longest has {report.longest})"
        )
    raise UserError(f"{src}, {tgt}: no usable pairs ({why})")
