"""Framing and padding: from bare ids to the tensors that a model reads.

The only place that adds BOS and EOS and pads. A target y = y1 … yn becomes the decoder's input
`BOS y1 … yn` and its expected output `y1 … yn EOS`; a source always ends in EOS, so no row of
attention is ever fully masked.

    >>> batch = collate([Example([7, 8], [9], index=0), Example([5], [6, 7], index=1)])
    >>> batch.src.tolist(), batch.tgt_in.tolist(), batch.tgt_out.tolist()
    ([[7, 8, 3], [5, 3, 0]], [[2, 9, 0], [2, 6, 7]], [[9, 3, 0], [6, 7, 3]])
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tokenizer.base import Ids
from tokenizer.special import BOS, EOS, N_SPECIAL, PAD, UNK


@dataclass(frozen=True, slots=True)
class Example:
    """One sentence pair as bare ids; `index` says which line it was."""

    src: Ids
    tgt: "Ids | None"
    index: int

    @property
    def longest(self) -> int:
        """Tokens of the longer side."""
        return max(len(self.src), 0 if self.tgt is None else len(self.tgt))

    def sides(self) -> tuple[list[int], list[int]]:
        """Source and target as plain lists; without a target its side is empty."""
        tgt = () if self.tgt is None else self.tgt
        return np.asarray(self.src).tolist(), np.asarray(tgt).tolist()


@dataclass(frozen=True, slots=True)
class Batch:
    """Framed, padded examples; S and T count EOS.

    Attributes:
        src: `ids EOS PAD…`, (B, S), int64.
        tgt_in: `BOS ids PAD…`, (B, T), int64; without targets (B, 1), BOS alone.
        tgt_out: `ids EOS PAD…`, (B, T), int64; what should follow each position of `tgt_in`.
        index: The examples' indices, (B,), int64.
    """

    src: Tensor
    tgt_in: Tensor
    tgt_out: Tensor
    index: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(*(t.to(device, non_blocking=True) for t in self.tensors()))

    def pinned(self) -> "Batch":
        """The same batch where a GPU can fetch it while it computes."""
        return Batch(*(t.pin_memory() for t in self.tensors()))

    def halves(self) -> tuple["Batch", "Batch"]:
        """The first half of the rows and the rest."""
        middle = len(self.index) // 2
        first, second = (
            [t[rows] for t in self.tensors()] for rows in (slice(middle), slice(middle, None))
        )
        return Batch(*first), Batch(*second)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four tensors, in the order of the fields."""
        return self.src, self.tgt_in, self.tgt_out, self.index

    @property
    def n_cells(self) -> int:
        """Places for tokens, padding included."""
        return self.src.numel() + self.tgt_out.numel()

    @property
    def n_tokens(self) -> int:
        """Source and target tokens, EOS included, padding not."""
        return int((self.src != PAD).sum() + (self.tgt_out != PAD).sum())


def collate(examples: Sequence[Example]) -> Batch:
    """Frame and pad examples into one batch; all of them have targets, or none is used."""
    targets = [e.tgt for e in examples if e.tgt is not None]
    if len(targets) < len(examples):
        targets = [()] * len(examples)
    return Batch(
        src=_pad([e.src for e in examples], before=(), after=(EOS,)),
        tgt_in=_pad(targets, before=(BOS,), after=()),
        tgt_out=_pad(targets, before=(), after=(EOS,)),
        index=torch.tensor([e.index for e in examples]),
    )


def drop_words(
    batch: Batch, share: float, rng: np.random.Generator, n_control: int = N_SPECIAL
) -> Batch:
    """Replace a random share of what the model reads by UNK: word dropout.

    Both inputs lose tokens, the source and the decoder's own past (Bowman et al. 2016, §3.1; Sennrich,
    Haddow and Birch 2016, Edinburgh systems, §2.2); what is to be predicted stays. Control ids,
    which are the first `n_control`, stay.
    """
    inputs = []
    for ids in (batch.src, batch.tgt_in):
        chosen = torch.from_numpy(rng.random(tuple(ids.shape)) < share)
        inputs.append(ids.masked_fill(chosen & (ids >= n_control), UNK))
    return replace(batch, src=inputs[0], tgt_in=inputs[1])


def _pad(rows: Sequence[Ids], before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """Frame each row and pad it on the right to the longest, (B, width)."""
    framing = len(before) + len(after)
    width = max(len(row) for row in rows) + framing
    padded = np.full((len(rows), width), PAD, dtype=np.int64)
    for out, row in zip(padded, rows, strict=True):
        end = len(before) + len(row)
        out[: len(before)] = before
        out[len(before) : end] = row
        out[end : end + len(after)] = after
    return torch.from_numpy(padded)
