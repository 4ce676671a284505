"""Search: from the probabilities of a next token to whole outputs.

    hypotheses = search(step, n_sentences, max_len, config)      as `config` says, one of:

    greedy(...)                the most probable token, again and again
    beam_search(...)           the K most probable prefixes, again and again
    diverse_beam_search(...)   the same in groups, each avoiding the words of those before it
    sample(...)                a token drawn at random, again and again

All are one loop (`_search`) that differs in how a prefix is extended. It sees no model, only a
`Step`; a table of probabilities will do (`tests/seq2seq/test_search.py`). What is done with logits
is in `logits.py`, how prefixes grow in `hypotheses.py`; the model as a step is in `decoder.py`,
text in `translator.py`.

Sentences are independent: in float64 the result of one is the same whatever else is in its batch.
Sums of log-probabilities are float64, whatever the model computes in.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from seq2seq.config import SearchConfig
from seq2seq.constraints import FREE, Constraints
from seq2seq.hypotheses import Extensions, Found, Hypothesis, Prefixes, falling
from seq2seq.logits import draw, largest, log_sum_exp, uniform_numbers
from tokenizer.special import BOS, EOS


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
    constraints: Constraints = FREE,
) -> list[list[Hypothesis]]:
    """Search as `config` asks for: by sampling, greedily (a beam of one), or with one beam or several.

    Args:
        step: As for `beam_search`.
        n_sentences: B.
        max_len: As for `beam_search`.
        config: What to do.
        keys: As for `sample`; by default 0 … B - 1.
        constraints: As for `beam_search`.

    Returns:
        For each sentence its hypotheses, best first; never none.
    """
    if config.sample:
        keys = range(n_sentences) if keys is None else keys
        return sample(step, n_sentences, max_len, config, keys, constraints)
    find = greedy if config.beam_size == 1 else beam_search
    if config.beam_groups > 1:
        find = diverse_beam_search
    return find(step, n_sentences, max_len, config, constraints)


def beam_search(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    constraints: Constraints = FREE,
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
        max_len: Longest output allowed for each sentence, at least 1, (B,): one that is so long
            without EOS is taken as it stands. Where no token is allowed at all, it is cut earlier.
        config: Reads `beam_size`, `length_penalty`, `n_best`, `min_len`, `no_repeat_ngram`.
        constraints: How each output must begin, and what may not come next.

    Returns:
        For each sentence, in the order given, its `n_best` hypotheses, best first; never none, but
        fewer where fewer exist.
    """

    def extend(live: Prefixes, logits: Tensor, norm: Tensor) -> Extensions:
        return _best_extensions(live, logits, norm, 2 * config.beam_size)

    return _search(step, config, max_len, constraints, extend)


def diverse_beam_search(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    constraints: Constraints = FREE,
) -> list[list[Hypothesis]]:
    """Find probable outputs that differ from one another (Vijayakumar et al. 2018, arXiv 1610.02424).

    The beam is divided into G = `config.beam_groups` groups, each of which is a beam search of its
    own, K / G wide. They take turns: a group loses `config.diversity_penalty` from the
    log-probability of a token for each prefix of an earlier group that has just been extended by
    that token (the paper's Hamming diversity). The loss guides the choice only: hypotheses have the
    model's own log-probabilities, and are ranked by them. What several groups found counts once.

    Without a penalty every group finds what a beam of its size does
    (test_groups_without_a_penalty_are_beams).

    Args:
        step: As for `beam_search`, and so are the others.
        n_sentences: B.
        max_len: Longest output, (B,).
        config: Reads what `beam_search` does, and the two above; `beam_size` is a multiple of G.
        constraints: Of each output.

    Returns:
        For each sentence up to `n_best` different hypotheses, best first; at least one.
    """
    n_groups, width = config.beam_groups, config.beam_size // config.beam_groups
    sentences = torch.arange(n_sentences, device=max_len.device).repeat_interleave(n_groups)
    step.select(sentences, sentences)  # every group becomes a sentence of its own

    def extend(live: Prefixes, logits: Tensor, norm: Tensor) -> Extensions:
        return _diverse_extensions(live, logits, norm, config)

    one = replace(config, beam_size=width, n_best=width)
    of_groups = max_len[sentences], constraints.of(sentences)
    found = _in_groups(_search(step, one, *of_groups, extend), n_groups)
    different = (list({h.ids: h for h in hypotheses}.values()) for hypotheses in found)
    return [sorted(some, key=falling)[: config.n_best] for some in different]


def greedy(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    constraints: Constraints = FREE,
) -> list[list[Hypothesis]]:
    """Take the most probable token until it is EOS; ties go to the smaller id.

    Args:
        step: As for `beam_search`, and so are the others.
        n_sentences: B.
        max_len: Longest output, (B,).
        config: Reads `length_penalty` (for the score), `min_len`, `no_repeat_ngram`.
        constraints: Of each output.

    Returns:
        For each sentence one hypothesis.
    """

    def extend(live: Prefixes, logits: Tensor, norm: Tensor) -> Extensions:
        values, tokens = logits.max(1, keepdim=True)  # of equals the first
        return Extensions(torch.zeros_like(tokens), tokens, values - norm)

    return _search(step, replace(config, beam_size=1, n_best=1), max_len, constraints, extend)


def sample(
    step: Step,
    n_sentences: int,
    max_len: Tensor,
    config: SearchConfig,
    keys: Sequence[int],
    constraints: Constraints = FREE,
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
        constraints: Of each output.

    Returns:
        For each sentence `n_best` hypotheses, best score first. Their log-probabilities are the
        model's own, whatever the temperature.
    """
    n = config.n_best
    sentences = torch.arange(n_sentences, device=max_len.device).repeat_interleave(n)
    if n > 1:
        step.select(sentences, sentences)  # every draw becomes a sentence of its own
    seeds = [(config.seed, key, i) for key in keys for i in range(n)]
    one = replace(config, beam_size=1, n_best=1)
    of_draws = max_len[sentences], constraints.of(sentences)
    uniform = uniform_numbers(seeds, int(max_len.max())).to(max_len.device)

    def extend(live: Prefixes, logits: Tensor, norm: Tensor) -> Extensions:
        tokens = draw(logits, uniform[live.sentence, live.length], config)
        return Extensions(torch.zeros_like(tokens), tokens, logits.gather(1, tokens) - norm)

    draws = _in_groups(_search(step, one, *of_draws, extend), n)
    return [sorted(some, key=falling) for some in draws]


def _in_groups(found: list[list[Hypothesis]], n: int) -> list[list[Hypothesis]]:
    """Join the hypotheses of every n neighbours."""
    return [list(itertools.chain(*found[i : i + n])) for i in range(0, len(found), n)]


@torch.inference_mode()
def _search(
    step: Step,
    config: SearchConfig,
    max_len: Tensor,
    constraints: Constraints,
    extend: Callable[[Prefixes, Tensor, Tensor], Extensions],
) -> list[list[Hypothesis]]:
    """The loop of `beam_search`.

    `extend` chooses among tokens by their logits (B·K, V), -inf where they are not allowed; less the
    norm (B·K, 1) they are log-probabilities.
    """
    found = Found(len(max_len), config, max_len.device)
    live = Prefixes.empty(len(max_len), max_len.device)
    last_ids = torch.full_like(live.sentence, BOS)
    while True:
        logits = step(last_ids)
        norm = log_sum_exp(logits)
        constraints.forbid(logits, live, config)
        extensions = extend(live, logits, norm)
        longer = live.extended(extensions)
        n_prefixes, stuck = live.ids.size(1), longer.log_prob[:, :1] == -torch.inf
        found.add(live, stuck, finished=False)  # no token is allowed
        ends = extensions.tokens == EOS
        found.add(longer, ends & _first(config.beam_size, ends), finished=True)
        live, columns = longer.best_unfinished(ends, config.beam_size)

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


def _best_extensions(live: Prefixes, logits: Tensor, norm: Tensor, n: int) -> Extensions:
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
    return Extensions(
        F.pad(order // per_prefix, missing),
        F.pad(tokens.gather(1, order), missing),
        F.pad(values.gather(1, order), missing, value=-torch.inf),
    )


def _diverse_extensions(
    live: Prefixes, logits: Tensor, norm: Tensor, config: SearchConfig
) -> Extensions:
    """The extensions of each group, one group after the other; see `diverse_beam_search`.

    Args:
        live: Group g of sentence b counts as sentence b·G + g.
        logits: Of each next token, one row for each prefix.
        norm: What makes them log-probabilities.
        config: Reads `beam_size`, `beam_groups`, `diversity_penalty`.
    """
    width = config.beam_size // config.beam_groups
    owner, group = live.sentence // config.beam_groups, live.sentence % config.beam_groups
    each_logits, each_norm = (x.view(*live.log_prob.shape, -1) for x in (logits, norm))
    shape = len(live.sentence), 2 * width
    chosen = Extensions(owner.new_zeros(shape), owner.new_zeros(shape), norm.new_zeros(shape))
    n_taken = norm.new_zeros(int(owner.max()) + 1, logits.size(1))  # by how many prefixes so far
    for turn in range(config.beam_groups):
        rows = (group == turn).nonzero()[:, 0]
        loss = config.diversity_penalty * n_taken[owner[rows]]
        lowered = (each_logits[rows] - loss[:, None]).flatten(0, 1)
        best = _best_extensions(live.keep(rows), lowered, each_norm[rows].flatten(0, 1), 2 * width)
        chosen.parents[rows], chosen.tokens[rows] = best.parents, best.tokens
        chosen.log_probs[rows] = best.log_probs + loss.gather(1, best.tokens)
        goes_on = (best.tokens != EOS) & (best.log_probs > -torch.inf)
        first = goes_on & (goes_on.cumsum(1) <= width)
        places = owner[rows][:, None].expand_as(first)[first], best.tokens[first]
        n_taken.index_put_(places, norm.new_ones(()), accumulate=True)
    return chosen


def _close_gaps(keep: Tensor) -> Tensor:
    """Which rows to go on with, (B',), where `keep` (B,) says so; as few as possible move.

    >>> _close_gaps(torch.tensor([True, False, True, True])).tolist()
    [0, 3, 2]
    """
    n = int(keep.sum())
    rows = torch.arange(n, device=keep.device)
    rows[~keep[:n]] = n + keep[n:].nonzero()[:, 0]
    return rows
