"""The weights of a model, carried over to another vocabulary: `--extend-vocab`.

A piece that both vocabularies have keeps its row. A new piece begins as the mean of the rows of the old
pieces that spell it: so the model starts with a guess of what it means, from text that it has learnt, while
a random row would outshine or drown the others (Hewitt 2021, "Initializing new word embeddings for pretrained
language models"; by the pieces that spell it rather than by all: Gee et al. 2022, "Fast vocabulary
transfer").
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.base import Tokenizer
from tokenizer.special import EOS, N_SPECIAL

_BY_ID = ("src_embedding.weight", "tgt_embedding.weight", "output.weight")  # a row for each id


@dataclass(frozen=True, slots=True)
class Transfer:
    """From which old rows each new row is made.

    Attributes:
        sources: For each new id the old ids; its row is the mean of theirs.
        n_copied: Pieces that both vocabularies have, control ids apart.
        n_new: Pieces that only the new one has.
        n_dropped: Pieces that only the old one has.
    """

    sources: tuple[tuple[int, ...], ...]
    n_copied: int
    n_new: int
    n_dropped: int


def transfer(old: Tokenizer, new: Tokenizer) -> Transfer:
    """Find what each piece of the new vocabulary is made of, in pieces of the old one.

    Pieces are compared by their text, not by their ids, and control ids by what they are for; a new
    language tag begins as the mean of the old ones, or like the end of a sentence. Of pieces with the
    same text, such as `A` and `<0x41>` of sentencepiece, the last goes to the last. A new piece
    is spelt by the fewest old pieces, the longest first among equals; as every byte has a piece, there is
    always a spelling.
    """
    old_ids = _ids(old.vocabulary())
    new_ids = _ids(new.vocabulary())
    of_text = {text: i for (text, n_after), i in old_ids.items() if not n_after}
    other = tuple(old.tags.values()) or (EOS,)
    sources: list[tuple[int, ...]] = [(i,) for i in range(N_SPECIAL)]
    sources += [(old.tags[name],) if name in old.tags else other for name in new.tags]
    sources += [(old_ids[p],) if p in old_ids else spelling(p[0], of_text) for p in new_ids]
    n_copied = len(new_ids.keys() & old_ids.keys())
    return Transfer(tuple(sources), n_copied, len(new_ids) - n_copied, len(old_ids) - n_copied)


def _ids(pieces: Sequence[bytes]) -> dict[tuple[bytes, int], int]:
    """The id of each piece that is text, by that and by how many with the same text follow.

    None follows the piece that a text is cut into: those that stand in for bytes come first.

    >>> _ids([b"", b"A", b"B", b"A"])
    {(b'A', 1): 1, (b'B', 0): 2, (b'A', 0): 3}
    """
    following = Counter(pieces)
    ids = {}
    for i, piece in enumerate(pieces):
        following[piece] -= 1
        if piece:
            ids[piece, following[piece]] = i
    return ids


def spelling(piece: bytes, ids: Mapping[bytes, int]) -> tuple[int, ...]:
    """The fewest ids whose pieces make up `piece`.

    >>> spelling(b"dogs", {b"d": 0, b"o": 1, b"g": 2, b"s": 3, b"do": 4, b"ogs": 5, b"dog": 6})
    (6, 3)

    Args:
        piece: At least one byte.
        ids: Of each piece; every byte of `piece` has one.
    """
    best: list[tuple[int, ...]] = [()]  # for the last 0, 1, 2, … bytes of the piece
    for start in range(len(piece) - 1, -1, -1):
        found = [
            (ids[piece[start:end]], *best[len(piece) - end])
            for end in range(len(piece), start, -1)
            if piece[start:end] in ids
        ]
        best.append(min(found, key=len))
    return best[-1]


def carried_over(
    weights: Mapping[str, Tensor], sources: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """The weights of a model for another vocabulary; all that has no row for each id stays as it is.

    Args:
        weights: By plain name, tied ones once.
        sources: For each new id the old ids whose mean its row is, as `Transfer` has them.
    """
    sizes = torch.tensor([len(ids) for ids in sources])
    rows = torch.tensor([i for ids in sources for i in ids])
    owners = torch.repeat_interleave(torch.arange(len(sources)), sizes)

    def means(old: Tensor) -> Tensor:
        new = torch.zeros(len(sources), old.size(1), dtype=torch.double)
        new.index_add_(0, owners, old.double()[rows])
        return (new / sizes[:, None]).to(old.dtype)

    return {name: means(w) if name in _BY_ID else w for name, w in weights.items()}
