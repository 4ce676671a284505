"""Aligned text on its way to ids: read in order, encoded block by block in several threads.

    text = Text(src_files, tgt_files, tokenizer, max_len)
    for block in text.blocks(): block.ids, block.sizes, block.report

Only a few blocks are in memory at a time. The store that they go into is in `corpus.py`.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from seq2seq.aligned import read_pairs
from seq2seq.segments import as_line
from tokenizer.base import Tokenizer

_CHUNK = 512  # pairs encoded at once; with more, half of the time is garbage collection
_AT_WORK = 3  # chunks at a time, so that the threads of the tokenizer are never idle

_Pairs = list[tuple[str, str]]


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

    n_lines: int = 0
    n_pairs: int = 0
    n_empty: int = 0
    n_too_long: int = 0
    longest: int = 0
    n_src_tokens: int = 0
    n_tgt_tokens: int = 0

    def __add__(self, other: "CorpusReport") -> "CorpusReport":
        """What was found in two texts together."""
        more = asdict(other)
        sums = {name: n + more[name] for name, n in asdict(self).items()}
        return CorpusReport(**{**sums, "longest": max(self.longest, other.longest)})


@dataclass(frozen=True, slots=True)
class Block:
    """Pairs that were read together, encoded.

    Attributes:
        part: From which pair of files they are.
        text: Their lines as they are encoded, kept or not.
        ids: Of all kept pairs one after the other, without framing.
        sizes: Source and target tokens of each kept pair, (n, 2).
        report: What was kept and skipped.
    """

    part: int
    text: bytes
    ids: np.ndarray
    sizes: np.ndarray
    report: CorpusReport


@dataclass(frozen=True, slots=True)
class Text:
    """Text files, and what turns them into ids.

    Attributes:
        src: Source files.
        tgt: Target files, aligned with them.
        tokenizer: Turns lines into ids.
        max_len: Pairs with more tokens on a side are skipped.
        tags: The language tag that each pair of files has at the front of its sources; or none.
    """

    src: Sequence[Path]
    tgt: Sequence[Path]
    tokenizer: Tokenizer
    max_len: int
    tags: tuple[int, ...] = ()

    def blocks(self) -> Iterator[Block]:
        """Everything, in order.

        The libraries compute without Python's lock, so while one thread waits for them, others make
        numpy arrays of what they gave back, and this one reads.

        Raises:
            UserError: When the text cannot be read, or two files differ in their number of lines.
        """
        with ThreadPoolExecutor(_AT_WORK) as pool:
            waiting: deque[Future[Block]] = deque()
            for part, chunk in self._chunks():
                waiting.append(pool.submit(self._encode, part, chunk))
                if len(waiting) > _AT_WORK:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def lines(self) -> Iterator[bytes]:
        """The same lines as `Block.text`, without encoding them; errors as for `blocks`."""
        return (_joined(chunk) for _, chunk in self._chunks())

    def origin(self) -> str:
        """What turns the text into ids."""
        digest = hashlib.sha256()
        for name, content in sorted(self.tokenizer.files().items()):
            digest.update(name.encode() + b"\0" + content)
        tags = f" {self.tags}" if self.tags else ""
        return f"{digest.hexdigest()} {self.max_len}{tags}\n"

    def _chunks(self) -> Iterator[tuple[int, _Pairs]]:
        for part, files in enumerate(zip(self.src, self.tgt, strict=True)):
            pairs = ((as_line(s), as_line(t)) for s, t in read_pairs(files[:1], files[1:]))
            while chunk := list(itertools.islice(pairs, _CHUNK)):
                yield part, chunk

    def _encode(self, part: int, chunk: _Pairs) -> Block:
        """Filter and encode some pairs."""
        full = [side for pair in chunk if all(pair) for side in pair]
        sides = self.tokenizer.encode_batch(full)
        if self.tags:
            sides[0::2] = [[self.tags[part], *side] for side in sides[0::2]]
        sizes = np.array([len(side) for side in sides], dtype=np.int64).reshape(-1, 2)
        fits = (sizes <= self.max_len).all(axis=1)
        kept = itertools.chain.from_iterable(
            side for side, fit in zip(sides, np.repeat(fits, 2).tolist(), strict=True) if fit
        )
        n_src, n_tgt = sizes[fits].sum(axis=0).tolist()
        report = CorpusReport(
            n_lines=len(chunk),
            n_pairs=int(fits.sum()),
            n_empty=len(chunk) - len(sizes),
            n_too_long=int((~fits).sum()),
            longest=int(sizes.max(initial=0)),
            n_src_tokens=n_src,
            n_tgt_tokens=n_tgt,
        )
        return Block(part, _joined(chunk), np.fromiter(kept, dtype=np.uint32), sizes[fits], report)


def _joined(chunk: _Pairs) -> bytes:
    return "".join(f"{s}\n{t}\n" for s, t in chunk).encode()
