"""Outputs on their way: live prefixes, what extends them, and the hypotheses that were found.

Tensors of whole batches, B sentences with K prefixes each. Which extensions are chosen is decided in
`search.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seq2seq.config import SearchConfig
from seq2seq.logits import longest_loop
from tokenizer.special import PAD

Length = TypeVar("Length", float, Tensor)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One output that a search found.

    Attributes:
        ids: Without BOS and EOS.
        score: What hypotheses are ranked by, see `length_norm`.
        log_prob: Of the whole output, EOS included where it ended in EOS; natural logarithm.
        token_log_probs: What `log_prob` is the sum of, one a token.
        finished: Whether it ended in EOS; False where it was cut at the longest length allowed.
    """

    ids: tuple[int, ...]
    score: float
    log_prob: float
    token_log_probs: tuple[float, ...]
    finished: bool


def length_norm(length: Length, penalty: float) -> Length:
    """What log p is divided by to rank outputs of `length` tokens, EOS counted.

    >>> length_norm(7, 1.0), length_norm(7, 0.0)
    (2.0, 1.0)
    """
    return ((5 + length) / 6) ** penalty


@dataclass(frozen=True, slots=True)
class Extensions:
    """Tokens to append to live prefixes, best first, (B, M) each.

    Attributes:
        parents: Which of the K prefixes.
        tokens: What to append.
        log_probs: Of the tokens; -inf where there are fewer than M.
    """

    parents: Tensor
    tokens: Tensor
    log_probs: Tensor


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The live prefixes of B sentences, K each, best first.

    Attributes:
        sentence: Its number among those given to the search, (B,).
        ids: (B, K, t).
        token_log_probs: (B, K, t).
        log_prob: (B, K), -inf where there are fewer than K.
    """

    sentence: Tensor
    ids: Tensor
    token_log_probs: Tensor
    log_prob: Tensor

    @classmethod
    def empty(cls, n_sentences: int, device: torch.device) -> "Prefixes":
        """One prefix without tokens for each sentence."""
        ids = torch.empty(n_sentences, 1, 0, dtype=torch.long, device=device)
        nothing = torch.zeros(n_sentences, 1, dtype=torch.float64, device=device)
        return cls(torch.arange(n_sentences, device=device), ids, ids.double(), nothing)

    @property
    def length(self) -> int:
        """Tokens of each, t."""
        return self.ids.size(2)

    def take(self, columns: Tensor) -> "Prefixes":
        """For each sentence the prefixes at the given columns (B, M)."""
        rows = torch.arange(columns.size(0), device=columns.device)[:, None]
        tensors = (self.ids, self.token_log_probs, self.log_prob)
        return Prefixes(self.sentence, *(x[rows, columns] for x in tensors))

    def keep(self, rows: Tensor) -> "Prefixes":
        """The given sentences (B',)."""
        tensors = (self.sentence, self.ids, self.token_log_probs, self.log_prob)
        return Prefixes(*(x[rows] for x in tensors))

    def extended(self, by: Extensions) -> "Prefixes":
        """The longer prefixes, (B, M, t + 1)."""
        old = self.take(by.parents)
        ids = torch.cat((old.ids, by.tokens[..., None]), -1)
        token_log_probs = torch.cat((old.token_log_probs, by.log_probs[..., None]), -1)
        return Prefixes(self.sentence, ids, token_log_probs, old.log_prob + by.log_probs)

    def best_unfinished(self, ends: Tensor, n: int) -> tuple["Prefixes", Tensor]:
        """The first n prefixes of each sentence that do not end, and their columns (B, n).

        Args:
            ends: Which do, (B, K).
            n: How many; where there are fewer, the rest has log-probability -inf.
        """
        columns = ends.int().sort(dim=1, stable=True).indices[:, :n]
        log_prob = self.log_prob.masked_fill(ends, -torch.inf).gather(1, columns)
        return replace(self.take(columns), log_prob=log_prob), columns


class Found:
    """The hypotheses found so far; they stay tensors until the search is over."""

    def __init__(self, n_sentences: int, config: SearchConfig, device: torch.device) -> None:
        """Begin without any; reads `n_best` and `length_penalty` of `config`."""
        self.n_best = config.n_best
        self.penalty = config.length_penalty
        self.count = torch.zeros(n_sentences, dtype=torch.long, device=device)
        best = torch.full((n_sentences, self.n_best), -torch.inf, dtype=torch.float64)
        self.best = best.to(device)  # the best scores of each sentence, falling
        self.chunks: list[tuple[bool, list[Tensor]]] = []

    def add(self, prefixes: Prefixes, mask: Tensor, finished: bool) -> None:
        """Add the prefixes (B, K, t) at `mask` (B, K); those that are `finished` end in EOS."""
        mask = mask & (prefixes.log_prob > -torch.inf)
        if not mask.any():
            return
        scores = prefixes.log_prob / length_norm(prefixes.length, self.penalty)
        known = torch.cat((self.best[prefixes.sentence], scores.masked_fill(~mask, -torch.inf)), 1)
        self.best[prefixes.sentence] = known.topk(self.n_best).values
        self.count[prefixes.sentence] += mask.sum(1)
        sentence = prefixes.sentence[:, None].expand_as(mask)
        tensors = (sentence, prefixes.ids, scores, prefixes.log_prob, prefixes.token_log_probs)
        self.chunks.append((finished, [x[mask] for x in tensors]))

    def settled(self, live: Prefixes, max_len: Tensor) -> Tensor:
        """Whether no live prefix of a sentence can still come among its best, (B,).

        Its log-probability can only fall, and will be divided by the norm of a length from t + 1 to
        `max_len` (B,). The norm is monotonic, so one of the two ends bounds the score.
        """
        log_prob = live.log_prob.amax(1)
        soon = log_prob / length_norm(float(live.length + 1), self.penalty)
        late = log_prob / length_norm(max_len.double(), self.penalty)
        return self.best[live.sentence, -1] >= torch.maximum(soon, late)

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Those of each sentence, best first; of equals, the one found first."""
        found: list[list[Hypothesis]] = [[] for _ in self.count]
        for finished, tensors in self.chunks:
            for sentence, *values in zip(*map(Tensor.tolist, tensors), strict=True):
                ids, score, log_prob, each = values
                ids = tuple(ids[:-1] if finished else ids)
                found[sentence].append(Hypothesis(ids, score, log_prob, tuple(each), finished))
        return [sorted(hypotheses, key=falling)[: self.n_best] for hypotheses in found]


def falling(hypothesis: Hypothesis) -> float:
    """The key that sorts hypotheses from the best to the worst."""
    return -hypothesis.score


def looping(
    index: Tensor, found: Sequence[Sequence[Hypothesis]], max_loop: Tensor | None
) -> list[int]:
    """The indices of the sentences whose best output repeats itself as often as is allowed.

    Args:
        index: Of each sentence, (B,).
        found: Its hypotheses, best first.
        max_loop: How often in a row it may have the same few tokens, (B,); None: any number.
    """
    if max_loop is None or not all(found):
        return []
    best = [torch.tensor(hypotheses[0].ids) for hypotheses in found]
    loops = longest_loop(pad_sequence(best, batch_first=True, padding_value=PAD)).to(index.device)
    indices: list[int] = index[loops >= max_loop].tolist()
    return indices
