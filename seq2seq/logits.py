"""Logits: how probable each next token is, which is allowed, and which to take.

Pure functions over logits (N, V) of N prefixes. Which prefixes there are, and what becomes of them,
is in `search.py`.
"""

import numpy as np
import torch
from torch import Tensor

from seq2seq.config import SearchConfig
from tokenizer.special import PAD

LONGEST_LOOP = 8  # longest sequence, in tokens, whose repetition counts as a loop
_SLICE = 1 << 18  # numbers


def log_sum_exp(logits: Tensor) -> Tensor:
    """What to subtract from logits (N, V) to make them log-probabilities, (N, 1).

    In float32 at least. A full log-softmax would write a tensor of N·V numbers of which a search
    needs a few; on a CPU that costs more than the sums. Slices that fit into a cache do not. Of
    each slice the softmax is taken, one kernel where `logsumexp` is four, and of that the largest
    probability, whose logarithm has no error that matters: it is 1 / V or more.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    rows = max(1, _SLICE // logits.size(1)) if logits.device.type == "cpu" else len(logits)
    norms = []
    for some in torch.split(logits, rows):
        largest_prob = some.softmax(1, dtype=dtype).amax(1, keepdim=True)
        norms.append(some.amax(1, keepdim=True).to(dtype) - largest_prob.log_())
    return torch.cat(norms)


def forbid_repeats(logits: Tensor, ids: Tensor, n: int) -> None:
    """Set what would complete an n-gram of ids (N, t) a second time to -inf, in place."""
    if ids.size(1) < n:
        return
    ngrams = ids.unfold(1, n, 1)  # (N, t - n + 1, n)
    last = ids[:, None, ids.size(1) - n + 1 :]  # (N, 1, n - 1)
    rows, places = (ngrams[..., :-1] == last).all(-1).nonzero(as_tuple=True)
    logits[rows, ngrams[rows, places, -1]] = -torch.inf


def forbid_loops(logits: Tensor, ids: Tensor, most: Tensor) -> None:
    """Set what would go on with a loop to -inf, in place.

    A prefix is in a loop when it ends in `most` copies of one sequence of up to `LONGEST_LOOP` tokens.

    Args:
        logits: Of each next token, (N, V).
        ids: The prefixes, (N, t).
        most: How often a sequence may come in a row, (N,).
    """
    n = ids.size(1)
    fewest = int(most.min())
    for size in range(1, min(LONGEST_LOOP, n // fewest) + 1):
        rows = (_run_lengths(ids, size)[:, -1] >= (most - 1) * size).nonzero()[:, 0]
        logits[rows, ids[rows, n - size]] = -torch.inf


def longest_loop(ids: Tensor) -> Tensor:
    """How often one sequence of up to `LONGEST_LOOP` tokens comes in a row, at most, (N,).

    >>> longest_loop(torch.tensor([[5, 6, 7, 6, 7, 6, 7], [5, 5, 6, 7, 8, 0, 0]])).tolist()
    [3, 2]

    Args:
        ids: Padded on the right with PAD, (N, t).
    """
    some = (ids != PAD).any(1).long()
    most = some
    for size in range(1, min(LONGEST_LOOP, ids.size(1) - 1) + 1):
        most = torch.maximum(most, _run_lengths(ids, size).amax(1) // size + 1)
    return most * some


def max_loops(src: Tensor, config: SearchConfig) -> Tensor | None:
    """How often in a row an output may have the same few tokens: as the source, or as set, (B,).

    Args:
        src: The sources, padded on the right with PAD, (B, S).
        config: Reads `max_repeats`.

    Returns:
        None where any number is allowed.
    """
    return longest_loop(src).clamp(min=config.max_repeats) if config.max_repeats else None


def _run_lengths(ids: Tensor, size: int) -> Tensor:
    """How many tokens in a row, up to each position, equal the one `size` before, (N, t - size).

    >>> _run_lengths(torch.tensor([[5, 6, 5, 6, 7, 6]]), 2).tolist()
    [[1, 2, 0, 1]]
    """
    equal = (ids[:, size:] == ids[:, :-size]) & (ids[:, size:] != PAD)
    count = equal.cumsum(1)
    return count - torch.where(equal, 0, count).cummax(1).values


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


def uniform_numbers(seeds: list[tuple[int, int, int]], n: int) -> Tensor:
    """Numbers in [0, 1), n from each seed; the first ones do not depend on n."""
    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(n) for seed in seeds]))


def draw(logits: Tensor, uniform: Tensor, config: SearchConfig) -> Tensor:
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
