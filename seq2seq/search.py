"""Search: from the probabilities of a next token to whole outputs.

    hypotheses = search(step, n_sentences, max_len, config)      as `config` says, one of:

    greedy(...)         the most probable token, again and again
    beam_search(...)    the K most probable prefixes, again and again
    sample(...)         a token drawn at random, again and again

All three are one loop (`_search`) that differs in how a prefix is extended. It sees no model, only
a `Step`; a table of probabilities will do (`tests/seq2seq/test_search.py`). The model as a step is
in `decoder.py`, text in `translator.py`.

Sentences are independent: in float64 the result of one is the same whatever else is in its batch.
Sums of log-probabilities are float64, whatever the model computes in.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.config import SearchConfig
from tokenizer.special import BOS, EOS, MASK, PAD, UNK

NEVER_PRODUCED = [PAD, UNK, BOS, MASK]
_SLICE = 1 << 18  # numbers
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


class Step(Protocol):
    """The model as search sees it: N growing prefixes of B sentences, K = N / B each.

    Rows K·b … K·b + K - 1 belong to sentence b. A new step has one empty prefix per sentence.
    """

    def __call__(self, last_ids: Tensor) -> Tensor:
        """Append a token to each prefix, and say what may come next.

        Args:
            last_ids: The tokens, (N,); BOS at first.

        Returns:
            Logits or log-probabilities of each next token, (N, V); the search may overwrite them.
        """

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Go on with other prefixes.

        Args:
            rows: The present prefixes to go on with, in that order; one may be taken several times
                or not at all. (N',), a multiple of the new B.
            sentences: The present sentences that the rows belong to, (B',): row i now belongs to
                the one at i // (N' / B'). None: all of them, as they are.
        """


def search(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    keys: Sequence[int] | None = None,
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Search as `config` asks for: `sample`, `greedy` (a beam of one) or `beam_search`.

    Args:
        step: As for `beam_search`.
        n_sentences: B.
        max_len: As for `beam_search`.
        config: What to do.
        keys: As for `sample`; by default 0 … B - 1.
        prefix: As for `beam_search`.

    Returns:
        For each sentence its hypotheses, best first; never none.
    """
    if config.sample:
        keys = range(n_sentences) if keys is None else keys
        return sample(step, n_sentences, max_len, config, keys, prefix)
    find = greedy if config.beam_size == 1 else beam_search
    return find(step, n_sentences, max_len, config, prefix)


def beam_search(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Find the most probable outputs of each sentence, approximately.

    A beam holds the K = `config.beam_size` most probable unfinished prefixes of one sentence. Every
    step extends each prefix by each of the V tokens and ranks the K·V results by log-probability.
    Those of the best K that end in EOS are finished and set aside; the best K that do not end in
    EOS live on. (The best 2K contain both: each prefix has one extension by EOS, so at most K of
    them end in it.)

    Finished hypotheses are ranked by

        score(y) = log p(y | x) / ((5 + |y|) / 6) ** length_penalty      (Wu et al. 2016, eq. 14)

    where |y| counts EOS: with 0 short outputs win, larger values favour longer ones. A sentence is
    done when K hypotheses have finished, or at `max_len`, where the live prefixes are taken as they
    stand; done sentences leave the batch. It is also done when no live prefix can still come among
    its `n_best`, since log p only falls: that saves steps and changes no result
    (test_early_exit_changes_nothing).

    With K = 1 this is greedy search (test_beam_of_one_is_greedy); with K ≥ the number of all
    sequences it is exact (test_wide_beam_equals_enumeration). Ties go to the better prefix, then to
    the smaller token id. Control ids other than EOS are never produced.

    Args:
        step: The model as search sees it; holds one row per sentence, expanded to K rows here.
        n_sentences: B.
        max_len: Longest output allowed for each sentence, EOS not counted, at least 1, (B,). Where
            no token is allowed at all, an output is cut earlier.
        config: Reads `beam_size`, `length_penalty`, `n_best`, `min_len`, `no_repeat_ngram`.
        prefix: What each output must begin with, padded with PAD, (B, P). It is part of the output,
            of its length and of its log-probability.

    Returns:
        For each sentence, in the order given, its `n_best` hypotheses, best first; never none, but
        fewer where fewer exist.
    """

    def extend(live: _Prefixes, logits: Tensor, norm: Tensor) -> _Extensions:
        return _best_extensions(live, logits, norm, 2 * config.beam_size)

    return _search(step, n_sentences, max_len, config, prefix, extend)


def greedy(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Take the most probable token until it is EOS; ties go to the smaller id.

    Args:
        step: As for `beam_search`, and so are the others.
        n_sentences: B.
        max_len: Longest output, (B,).
        config: Reads `length_penalty` (for the score), `min_len`, `no_repeat_ngram`.
        prefix: What each output must begin with, (B, P).

    Returns:
        For each sentence one hypothesis.
    """

    def extend(live: _Prefixes, logits: Tensor, norm: Tensor) -> _Extensions:
        values, tokens = logits.max(1, keepdim=True)  # of equals the first
        return _Extensions(torch.zeros_like(tokens), tokens, values - norm)

    one = replace(config, beam_size=1, n_best=1)
    return _search(step, n_sentences, max_len, one, prefix, extend)


def sample(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    keys: Sequence[int],
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Draw outputs at random, each token with its probability.

    The random numbers of a sentence come from `config.seed` and its key alone, so its outputs do
    not depend on the batch it is in.

    Args:
        step: As for `beam_search`.
        n_sentences: B.
        max_len: Longest output, (B,).
        config: Reads `n_best` (draws a sentence; some may be equal), `temperature`, `top_k`,
            `top_p` (only the most probable tokens, as few as have that mass together), `seed`,
            `length_penalty` (for the score), `min_len`, `no_repeat_ngram`.
        keys: A number ≥ 0 that names each sentence, its line for example; B of them.
        prefix: What each output must begin with, (B, P).

    Returns:
        For each sentence `n_best` hypotheses, best score first. Their log-probabilities are the
        model's own, whatever the temperature.
    """
    n = config.n_best
    if n > 1:  # every draw becomes a sentence of its own
        sentences = torch.arange(n_sentences, device=max_len.device).repeat_interleave(n)
        step.select(sentences, sentences)
        max_len = max_len[sentences]
        prefix = None if prefix is None else prefix[sentences]
    seeds = [(config.seed, key, i) for key in keys for i in range(n)]
    uniform = _uniform(seeds, int(max_len.max())).to(max_len.device)

    def extend(live: _Prefixes, logits: Tensor, norm: Tensor) -> _Extensions:
        tokens = _draw(logits, uniform[live.sentence, live.length], config)
        return _Extensions(torch.zeros_like(tokens), tokens, logits.gather(1, tokens) - norm)

    one = replace(config, beam_size=1, n_best=1)
    draws = _search(step, n_sentences * n, max_len, one, prefix, extend)
    groups = (draws[i : i + n] for i in range(0, len(draws), n))
    return [sorted(itertools.chain(*group), key=_falling) for group in groups]


def length_norm(length: Length, penalty: float) -> Length:
    """What log p is divided by to rank outputs of `length` tokens, EOS counted.

    >>> length_norm(7, 1.0), length_norm(7, 0.0)
    (2.0, 1.0)
    """
    return ((5 + length) / 6) ** penalty


@dataclass(frozen=True, slots=True)
class _Extensions:
    """Tokens to append to live prefixes, most probable first, (B, M) each."""

    parents: Tensor  # which of the K prefixes
    tokens: Tensor
    log_probs: Tensor  # of the tokens


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The live prefixes of B sentences, K each, most probable first."""

    sentence: Tensor  # its number among those given to the search, (B,)
    ids: Tensor  # (B, K, t)
    token_log_probs: Tensor  # (B, K, t)
    log_prob: Tensor  # (B, K), -inf where there are fewer than K

    @property
    def length(self) -> int:
        return self.ids.size(2)

    def take(self, columns: Tensor) -> "_Prefixes":
        """For each sentence the prefixes at the given columns (B, M)."""
        rows = torch.arange(columns.size(0), device=columns.device)[:, None]
        tensors = (self.ids, self.token_log_probs, self.log_prob)
        return _Prefixes(self.sentence, *(x[rows, columns] for x in tensors))

    def keep(self, rows: Tensor) -> "_Prefixes":
        """The given sentences (B',)."""
        tensors = (self.sentence, self.ids, self.token_log_probs, self.log_prob)
        return _Prefixes(*(x[rows] for x in tensors))

    def extended(self, by: _Extensions) -> "_Prefixes":
        """The longer prefixes, (B, M, t + 1)."""
        old = self.take(by.parents)
        ids = torch.cat((old.ids, by.tokens[..., None]), -1)
        token_log_probs = torch.cat((old.token_log_probs, by.log_probs[..., None]), -1)
        return _Prefixes(self.sentence, ids, token_log_probs, old.log_prob + by.log_probs)


class _Found:
    """The hypotheses found so far; they stay tensors until the search is over."""

    def __init__(self, n_sentences: int, config: SearchConfig, device: torch.device) -> None:
        self.n_best = config.n_best
        self.penalty = config.length_penalty
        self.count = torch.zeros(n_sentences, dtype=torch.long, device=device)
        best = torch.full((n_sentences, self.n_best), -torch.inf, dtype=torch.float64)
        self.best = best.to(device)  # the best scores of each sentence, falling
        self.chunks: list[tuple[bool, list[Tensor]]] = []

    def add(self, prefixes: _Prefixes, mask: Tensor, finished: bool) -> None:
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

    def settled(self, live: _Prefixes, max_len: Tensor) -> Tensor:
        """Whether no live prefix of a sentence can still come among its best, (B,).

        Its log-probability can only fall, and will be divided by the norm of a length from t + 1 to
        `max_len` (B,). The norm is monotonic, so one of the two ends bounds the score.
        """
        log_prob = live.log_prob[:, 0]
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
        return [sorted(hypotheses, key=_falling)[: self.n_best] for hypotheses in found]


def _falling(hypothesis: Hypothesis) -> float:
    return -hypothesis.score


@torch.inference_mode()
def _search(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    prefix: Tensor | None,
    extend: Callable[[_Prefixes, Tensor, Tensor], _Extensions],
) -> list[list[Hypothesis]]:
    """The loop of `beam_search`.

    `extend` chooses among tokens by their logits (B·K, V), -inf where they are not allowed; less the
    norm (B·K, 1) they are log-probabilities.
    """
    found = _Found(n_sentences, config, max_len.device)
    live = _empty_prefixes(n_sentences, max_len.device)
    last_ids = torch.full_like(live.sentence, BOS)
    while True:
        logits = step(last_ids)
        norm = log_sum_exp(logits)
        _forbid(logits, live, config, prefix)
        extensions = extend(live, logits, norm)
        longer = live.extended(extensions)
        n_prefixes, stuck = live.ids.size(1), longer.log_prob[:, :1] == -torch.inf
        found.add(live, stuck, finished=False)  # no token is allowed
        ends = extensions.tokens == EOS
        found.add(longer, ends & _first(config.beam_size, ends), finished=True)
        live, columns = _best_unfinished(longer, ends, config.beam_size)

        limit = max_len[live.sentence]
        at_end = live.length >= limit
        found.add(live, at_end[:, None], finished=False)
        enough = found.count[live.sentence] >= config.beam_size
        done = at_end | enough | found.settled(live, limit)
        if done.all():
            return found.hypotheses()

        first_rows = torch.arange(len(done), device=done.device)[:, None] * n_prefixes
        rows, remaining = first_rows + extensions.parents.gather(1, columns), None
        if done.any():
            remaining = _close_gaps(~done)
            rows, live = rows[remaining], live.keep(remaining)
        step.select(rows.flatten(), remaining)
        last_ids = live.ids[:, :, -1].flatten()


def _first(n: int, mask: Tensor) -> Tensor:
    """True at the first n columns of `mask`."""
    return torch.arange(mask.size(1), device=mask.device) < n


def _best_unfinished(prefixes: _Prefixes, ends: Tensor, n: int) -> tuple[_Prefixes, Tensor]:
    """The best n prefixes of each sentence that do not end in EOS, and their columns (B, n)."""
    log_prob, columns = prefixes.log_prob.masked_fill(ends, -torch.inf).sort(
        dim=1, descending=True, stable=True
    )
    columns = columns[:, :n]
    return replace(prefixes.take(columns), log_prob=log_prob[:, :n]), columns


def _empty_prefixes(n_sentences: int, device: torch.device) -> _Prefixes:
    """One prefix without tokens for each sentence."""
    ids = torch.empty(n_sentences, 1, 0, dtype=torch.long, device=device)
    nothing = torch.zeros(n_sentences, 1, dtype=torch.float64, device=device)
    return _Prefixes(torch.arange(n_sentences, device=device), ids, ids.double(), nothing)


def log_sum_exp(logits: Tensor) -> Tensor:
    """What to subtract from logits (N, V) to make them log-probabilities, (N, 1).

    In float32 at least. A full log-softmax would write a tensor of N·V numbers of which a search
    needs a few; on a CPU that costs more than the sums. Slices that fit into a cache do not.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    rows = max(1, _SLICE // logits.size(1)) if logits.device.type == "cpu" else len(logits)
    slices = [x.to(dtype).logsumexp(1, keepdim=True) for x in torch.split(logits, rows)]
    return torch.cat(slices)


def _forbid(logits: Tensor, live: _Prefixes, config: SearchConfig, prefix: Tensor | None) -> None:
    """Set the logits (N, V) of tokens that are not allowed to -inf, in place.

    They keep their share of the probability, so that the search and scoring a given output agree.
    """
    forced = None
    if prefix is not None and live.length < prefix.size(1):
        tokens = prefix[live.sentence, live.length].repeat_interleave(live.ids.size(1))
        rows = (tokens != PAD).nonzero()[:, 0]
        forced = rows, tokens[rows], logits[rows, tokens[rows]]
    logits[:, NEVER_PRODUCED] = -torch.inf
    if live.length < config.min_len:
        logits[:, EOS] = -torch.inf
    if config.no_repeat_ngram:
        _forbid_repeats(logits, live.ids.flatten(0, 1), config.no_repeat_ngram)
    if forced is not None:
        rows, tokens, values = forced
        logits[rows] = -torch.inf
        logits[rows, tokens] = values


def _forbid_repeats(logits: Tensor, ids: Tensor, n: int) -> None:
    """Set what would complete an n-gram of ids (N, t) a second time to -inf, in place."""
    if ids.size(1) < n:
        return
    ngrams = ids.unfold(1, n, 1)  # (N, t - n + 1, n)
    last = ids[:, None, ids.size(1) - n + 1 :]  # (N, 1, n - 1)
    rows, places = (ngrams[..., :-1] == last).all(-1).nonzero(as_tuple=True)
    logits[rows, ngrams[rows, places, -1]] = -torch.inf


def _best_extensions(live: _Prefixes, logits: Tensor, norm: Tensor, n: int) -> _Extensions:
    """The n most probable extensions of each sentence's prefixes by a token, (B, n).

    Args:
        live: B sentences, K prefixes each.
        logits: Of each next token, (B·K, V).
        norm: What makes them log-probabilities, (B·K, 1).
        n: How many; where there are fewer, the rest has log-probability -inf.
    """
    per_prefix = min(n, logits.size(1))
    values, tokens = largest(logits, per_prefix)
    per_sentence = live.ids.size(1) * per_prefix
    values, tokens = (values - norm).view(-1, per_sentence), tokens.view(-1, per_sentence)
    totals = live.log_prob.repeat_interleave(per_prefix, 1) + values
    order = totals.sort(dim=1, descending=True, stable=True).indices[:, :n]
    missing = (0, n - order.size(1))
    return _Extensions(
        F.pad(order // per_prefix, missing),
        F.pad(tokens.gather(1, order), missing),
        F.pad(values.gather(1, order), missing, value=-torch.inf),
    )


def largest(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest entries of each row, falling; equals in the order of their positions.

    `topk` alone leaves open which of several equals it takes, and logits in bf16 have many. Where
    it had to choose, the tied row is looked through once more.

    >>> largest(torch.tensor([[0.5, 0.9, 0.5, 0.5]]), 3)[1].tolist()
    [[1, 0, 2]]

    Args:
        x: (R, V).
        n: At most V.

    Returns:
        Values and positions, (R, n) each.
    """
    if n == x.size(1):
        places = torch.arange(n, device=x.device).expand_as(x)
    else:
        values, places = x.topk(n + 1)
        tied = (values[:, n - 1] == values[:, n]).nonzero()[:, 0]
        places = places[:, :n]
        if len(tied):
            places[tied] = _first_of_equals(x[tied], values[tied, :n], places[tied])
        places = places.sort(dim=1).values
    values, order = x.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def _first_of_equals(x: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """Replace the places of the smallest of `values` (R, n) by its first places in x (R, V)."""
    smallest = values[:, -1:]
    above = (values > smallest).sum(1, keepdim=True)
    position = torch.arange(x.size(1), 0, -1, device=x.device)  # falling, so topk finds the first
    first = torch.where(x == smallest, position, 0).topk(values.size(1)).indices
    rank = torch.arange(values.size(1), device=x.device) - above
    return torch.where(rank < 0, places, first.gather(1, rank.clamp(min=0)))


def _uniform(seeds: list[tuple[int, int, int]], n: int) -> Tensor:
    """Numbers in [0, 1), n from each seed; the first ones do not depend on n."""
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(n) for seed in seeds]))


def _draw(logits: Tensor, uniform: Tensor, config: SearchConfig) -> Tensor:
    """Draw a token from each row of logits (N, V) by a number in [0, 1) each, (N, 1)."""
    tokens = None
    if config.top_k or config.top_p < 1:
        n = min(config.top_k or logits.size(1), logits.size(1))
        logits, tokens = largest(logits, n)
    probs = (logits.double() / config.temperature).softmax(-1)
    if config.top_p < 1:
        probs[probs.cumsum(-1) - probs >= config.top_p] = 0
    mass = probs.cumsum(-1)
    drawn = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)
    drawn = drawn.clamp(max=mass.size(1) - 1)
    return drawn if tokens is None else tokens.gather(1, drawn)


def _close_gaps(keep: Tensor) -> Tensor:
    """Which rows to go on with, (B',), where `keep` (B,) says so; as few as possible move.

    >>> _close_gaps(torch.tensor([True, False, True, True])).tolist()
    [0, 3, 2]
    """
    n = int(keep.sum())
    rows = torch.arange(n, device=keep.device)
    rows[~keep[:n]] = n + keep[n:].nonzero()[:, 0]
    return rows
