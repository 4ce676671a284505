import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain

import pytest
import torch
from torch import Tensor

from seq2seq.config import SearchConfig
from seq2seq.constraints import Constraints
from seq2seq.hypotheses import Hypothesis
from seq2seq.search import beam_search, diverse_beam_search, greedy, sample, search
from tokenizer.special import BOS, EOS, MASK, N_SPECIAL, PAD, UNK

A, B, C = N_SPECIAL, N_SPECIAL + 1, N_SPECIAL + 2
FORBIDDEN = {PAD, UNK, BOS, MASK}


class TableStep:
    """A model that is a table: what comes next depends on the sentence and the whole prefix.

    A prefix is hashed to a row of `logits` (sentences, rows, V). It checks what `Step` is promised.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.sentences = torch.arange(len(logits))  # those present
        self.owners = self.sentences  # of each row, its sentence
        self.states = torch.zeros_like(self.owners)
        self.n_rows = 0  # ever computed

    def __call__(self, last_ids: Tensor) -> Tensor:
        self.n_rows += len(last_ids)
        self.states = (self.states * 31 + last_ids) % self.logits.size(1)
        return self.logits[self.owners, self.states]

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        if sentences is not None:
            self.sentences = self.sentences[sentences]
        self.owners, self.states = self.owners[rows], self.states[rows]
        per_sentence = len(rows) // len(self.sentences)
        assert torch.equal(self.owners, self.sentences.repeat_interleave(per_sentence))


def random_table(
    seed: int, n_sentences: int = 3, n_words: int = 4, sharpness: float = 2.0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_sentences, 997, N_SPECIAL + n_words)
    return sharpness * torch.randn(shape, generator=generator, dtype=torch.float64)


def table_of(rows: dict[tuple[int, ...], dict[int, float]], n_words: int = 3) -> Tensor:
    """One sentence; the given prefixes have the given probabilities, all others end."""
    logits = torch.full((1, 997, N_SPECIAL + n_words), -math.inf, dtype=torch.float64)
    logits[:, :, EOS] = 0.0
    for prefix, probabilities in rows.items():
        state = 0
        for token in (BOS, *prefix):
            state = (state * 31 + token) % 997
        logits[0, state] = -math.inf
        for token, probability in probabilities.items():
            logits[0, state, token] = math.log(probability)
    return logits


def run(
    find: Callable[..., list[list[Hypothesis]]],
    table: Tensor,
    max_len: int | list[int] = 4,
    prefix: Tensor | None = None,
    **settings: float,
) -> list[list[Hypothesis]]:
    lengths = [max_len] * len(table) if isinstance(max_len, int) else max_len
    config = SearchConfig(**settings)
    return find(
        TableStep(table), len(table), torch.tensor(lengths), config, constraints=Constraints(prefix)
    )


def every_output(table: Tensor, max_len: int) -> Iterator[tuple[tuple[int, ...], float, int, bool]]:
    """All outputs of the first sentence: ids, log-probability, length with EOS, finished."""
    pending: list[tuple[tuple[int, ...], int, float]] = [((), BOS, 0.0)]
    while pending:
        ids, state, log_prob = pending.pop()
        if len(ids) == max_len:
            yield ids, log_prob, max_len, False
            continue
        following = table[0, state % 997].log_softmax(-1).tolist()
        yield ids, log_prob + following[EOS], len(ids) + 1, True
        for token in range(N_SPECIAL, table.size(2)):
            pending.append(((*ids, token), (state * 31 + token) % 997, log_prob + following[token]))


def outputs(results: list[list[Hypothesis]]) -> list[list[tuple[int, ...]]]:
    return [[hypothesis.ids for hypothesis in some] for some in results]


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(
    ("n_words", "max_len", "beam_size"), [(4, 4, 341), (6, 3, 259), (2, 5, 63)]
)
def test_wide_beam_equals_enumeration(
    n_words: int, max_len: int, beam_size: int, length_penalty: float
) -> None:
    for seed in range(3):
        table = random_table(seed, 1, n_words)
        ranked = sorted(
            (-log_prob / ((5 + length) / 6) ** length_penalty, ids, log_prob, finished)
            for ids, log_prob, length, finished in every_output(table, max_len)
        )
        for n_best in (1, 20):
            found = run(
                beam_search,
                table,
                max_len,
                beam_size=beam_size,
                n_best=n_best,
                length_penalty=length_penalty,
            )[0]
            assert len(found) == n_best
            for hypothesis, (score, ids, log_prob, finished) in zip(found, ranked, strict=False):
                assert (hypothesis.ids, hypothesis.finished) == (ids, finished)
                assert (hypothesis.score, hypothesis.log_prob) == pytest.approx((-score, log_prob))


@pytest.mark.parametrize("settings", [{}, {"min_len": 3}, {"no_repeat_ngram": 2}])
def test_beam_of_one_is_greedy(settings: dict[str, int]) -> None:
    for seed in range(5):
        table = random_table(seed, 8)
        assert run(beam_search, table, 6, beam_size=1, **settings) == run(
            greedy, table, 6, **settings
        )


def test_greedy_follows_the_most_probable_token() -> None:
    table = table_of({(): {A: 0.6, B: 0.4}, (A,): {C: 0.5, EOS: 0.3, A: 0.2}})
    (only,) = run(greedy, table, length_penalty=1.0)[0]
    assert only.ids == (A, C)
    assert only.finished
    assert only.log_prob == pytest.approx(math.log(0.6 * 0.5))
    assert only.token_log_probs == pytest.approx((math.log(0.6), math.log(0.5), 0.0))
    assert only.score == pytest.approx(math.log(0.3) / (8 / 6))  # three tokens with EOS


def test_beam_search_finds_what_greedy_misses() -> None:
    # A begins better, but B ends better: 0.6 · 0.4 = 0.24 against 0.4 · 0.9 = 0.36.
    table = table_of({(): {A: 0.6, B: 0.4}, (A,): {A: 0.4, B: 0.3, C: 0.3}, (B,): {C: 0.9, A: 0.1}})
    assert outputs(run(greedy, table)) == [[(A, A)]]
    found = run(beam_search, table, beam_size=2, n_best=2, length_penalty=0.0)[0]
    assert [h.ids for h in found] == [(B, C), (A, A)]
    assert [math.exp(h.log_prob) for h in found] == pytest.approx([0.36, 0.24])


def test_length_penalty_favours_longer_outputs() -> None:
    table = table_of({(): {EOS: 0.4, A: 0.6}, (A,): {B: 0.6, C: 0.4}})  # 0.4 against 0.36
    assert outputs(run(beam_search, table, beam_size=4, length_penalty=0.0)) == [[()]]
    assert outputs(run(beam_search, table, beam_size=4, length_penalty=1.0)) == [[(A, B)]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ties_go_to_the_smaller_token_id(dtype: torch.dtype) -> None:
    table = torch.zeros(2, 997, 700, dtype=dtype)
    assert outputs(run(greedy, table, 3, min_len=3)) == [[(A, A, A)]] * 2
    found = run(beam_search, table, 3, beam_size=7, n_best=7, min_len=3)
    assert outputs(found) == [[(A, A, A + i) for i in range(7)]] * 2


def test_control_ids_are_never_produced() -> None:
    table = random_table(0, 20)
    table[:, :, sorted(FORBIDDEN)] += 10
    settings = {"beam_size": 3, "n_best": 3, "min_len": 2, "top_p": 0.9}
    found = [*run(beam_search, table, **settings), *run(greedy, table, **settings)]
    config = SearchConfig(**settings)
    found += sample(TableStep(table), 20, torch.full((20,), 4), config, range(20))
    assert not {i for some in found for h in some for i in h.ids} & {*FORBIDDEN, EOS}


def test_language_tags_are_control_ids_too() -> None:
    table = random_table(0, 20)
    table[:, :, A] += 10
    tagged = Constraints(n_control=N_SPECIAL + 1)
    for settings in ({}, {"beam_size": 4}, {"beam_size": 4, "beam_groups": 2}, {"sample": True}):
        config = SearchConfig(**settings)  # type: ignore[arg-type]
        limits = torch.full((20,), 4)
        found = search(TableStep(table), 20, limits, config, constraints=tagged)
        assert not {i for some in found for h in some for i in h.ids} & {*FORBIDDEN, EOS, A}


@pytest.mark.parametrize("beam_size", [1, 4])
def test_lengths_lie_between_minimum_and_maximum(beam_size: int) -> None:
    table = random_table(1, 6)
    table[:, :, EOS] += 3
    longest = [2, 3, 4, 5, 6, 7]
    found = run(search, table, longest, beam_size=beam_size, n_best=beam_size, min_len=2)
    for some, limit in zip(found, longest, strict=True):
        assert all(2 <= len(h.ids) <= limit for h in some)
        assert all(h.finished == (len(h.token_log_probs) == len(h.ids) + 1) for h in some)
        assert all(h.finished or len(h.ids) == limit for h in some)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_comes_twice(n: int, beam_size: int) -> None:
    table = random_table(2, 10, n_words=12 if n == 1 else 3)
    settings = {"beam_size": beam_size, "n_best": beam_size, "min_len": 9}
    free, bound = (run(search, table, 10, no_repeat_ngram=m, **settings) for m in (0, n))

    def repeats(ids: tuple[int, ...]) -> bool:
        return max(Counter(zip(*(ids[i:] for i in range(n)), strict=False)).values()) > 1

    assert any(repeats(h.ids) for some in free for h in some)
    assert not any(repeats(h.ids) for some in bound for h in some)


def test_an_output_that_cannot_go_on_is_cut() -> None:
    table = random_table(3, 2, n_words=2)  # two words, none twice, and EOS only after five tokens
    found = run(beam_search, table, 8, beam_size=3, min_len=5, no_repeat_ngram=1)
    assert [(len(h.ids), h.finished) for some in found for h in some] == [(2, False)] * 2


@pytest.mark.parametrize("beam_size", [1, 3])
def test_outputs_begin_with_their_prefix_and_pay_for_it(beam_size: int) -> None:
    table = random_table(4, 3)
    prefix = torch.tensor([[C, C, A], [B, PAD, PAD], [PAD, PAD, PAD]])
    free = run(search, table, 6, beam_size=beam_size)
    found = run(search, table, 6, prefix, beam_size=beam_size)
    assert found[0][0].ids[:3] == (C, C, A)
    assert found[1][0].ids[0] == B
    assert found[2] == free[2]
    first = table[0, BOS].log_softmax(-1)[C].item()
    assert found[0][0].token_log_probs[0] == pytest.approx(first)


@pytest.mark.parametrize(
    "settings",
    [
        {"beam_size": 4, "n_best": 4},
        {"beam_size": 4, "beam_groups": 2, "n_best": 4},
        {"sample": True, "n_best": 4},
    ],
)
def test_every_alternative_begins_with_the_prefix(settings: dict[str, int]) -> None:
    prefix = torch.tensor([[C, C, C, C], [B, PAD, PAD, PAD], [PAD, PAD, PAD, PAD]])
    found = run(search, random_table(4, 3), 6, prefix, no_repeat_ngram=1, **settings)
    assert all(h.ids[:4] == (C, C, C, C) for h in found[0])
    assert all(h.ids[0] == B for h in found[1])
    assert min(map(len, found)) > 1


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_loop_is_left_after_as_many_rounds_as_are_allowed(beam_size: int) -> None:
    table = torch.zeros(3, 997, N_SPECIAL + 3, dtype=torch.float64)
    table[:, :, A], table[:, :, B] = 9.0, 1.0  # A for ever, or else B
    most = torch.tensor([2, 4, 100])
    settings = SearchConfig(beam_size=beam_size)
    found = search(
        TableStep(table), 3, torch.full((3,), 6), settings, constraints=Constraints(max_loop=most)
    )
    assert [some[0].ids for some in found] == [(A, A, B, A, A, B), (A, A, A, A, B, A), (A,) * 6]


def test_forcing_the_best_output_finds_it_again() -> None:
    table = random_table(5, 1)
    (best,) = run(beam_search, table, 5, beam_size=400)[0]
    prefix = torch.tensor([best.ids])
    (again,) = run(beam_search, table, 5, prefix, beam_size=400)[0]
    assert again == best


@pytest.mark.parametrize("n_best", [1, 3, 8])
def test_n_best_is_sorted_and_distinct(n_best: int) -> None:
    for some in run(beam_search, random_table(6, 10), 6, beam_size=8, n_best=n_best):
        assert len(some) == n_best
        assert [h.score for h in some] == sorted((h.score for h in some), reverse=True)
        assert len({h.ids for h in some}) == n_best


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_score_is_the_normalised_sum_of_token_log_probs(length_penalty: float) -> None:
    settings = {"beam_size": 4, "n_best": 4, "length_penalty": length_penalty}
    for hypothesis in chain(*run(beam_search, random_table(7, 10), 6, **settings)):
        total = sum(hypothesis.token_log_probs)
        norm = ((5 + len(hypothesis.token_log_probs)) / 6) ** length_penalty
        assert hypothesis.log_prob == pytest.approx(total)
        assert hypothesis.score == pytest.approx(total / norm)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 3.0])
def test_early_exit_changes_nothing(length_penalty: float) -> None:
    # With n_best = K a sentence goes on until K hypotheses have finished: there is no early exit.
    table = random_table(8, 40, sharpness=4.0)
    settings = {"beam_size": 4, "length_penalty": length_penalty}
    early, full = (run(beam_search, table, 12, n_best=n, **settings) for n in (1, 4))
    assert early == [some[:1] for some in full]


def test_early_exit_saves_steps() -> None:
    table = random_table(8, 40, sharpness=4.0)
    rows = []
    for n_best in (1, 4):
        step = TableStep(table)
        beam_search(step, 40, torch.full((40,), 30), SearchConfig(beam_size=4, n_best=n_best))
        rows.append(step.n_rows)
    assert rows[0] < rows[1]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_sentence_does_not_depend_on_its_batch(beam_size: int) -> None:
    table = random_table(9, 30)
    limits = [1 + i % 7 for i in range(30)]
    together = run(search, table, limits, beam_size=beam_size, n_best=beam_size)
    for i in range(30):
        alone = run(
            search, table[i : i + 1], limits[i : i + 1], beam_size=beam_size, n_best=beam_size
        )
        assert alone[0] == together[i]


def test_done_sentences_leave_the_batch() -> None:
    table = random_table(10, 4)
    step = TableStep(table)
    greedy(step, 4, torch.tensor([1, 2, 3, 4]), SearchConfig(min_len=4))
    assert step.n_rows == 4 + 3 + 2 + 1


@pytest.mark.parametrize("beam_size", [2, 50, 1000])
def test_a_beam_wider_than_the_vocabulary_works(beam_size: int) -> None:
    table = table_of({(): {A: 1.0}, (A,): {B: 0.9, EOS: 0.1}}, n_words=2)
    found = run(beam_search, table, 3, beam_size=beam_size, n_best=5, length_penalty=0.0)[0]
    assert [h.ids for h in found] == [(A, B), (A,)]
    assert all(math.isfinite(h.score) for h in found)


def naive_diverse_search(
    table: Tensor, max_len: int, n_groups: int, width: int, penalty: float
) -> set[tuple[int, ...]]:
    """What the groups find for the first sentence, one candidate at a time."""

    def score(log_prob: float, length: int) -> float:
        return log_prob / ((5 + length) / 6) ** SearchConfig.length_penalty

    live = [[((), BOS, 0.0)] for _ in range(n_groups)]
    found: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(n_groups)]
    for length in range(1, max_len + 1):
        n_taken: Counter[int] = Counter()
        for group in range(n_groups):
            candidates = []
            for ids, state, log_prob in live[group]:
                following = table[0, state % 997].log_softmax(-1).tolist()
                for token in (EOS, *range(N_SPECIAL, table.size(2))):
                    total = log_prob + following[token]
                    lowered = total - penalty * n_taken[token]
                    candidates.append((lowered, (*ids, token), state * 31 + token, total))
            candidates.sort(reverse=True)
            ended = [c for c in candidates[:width] if c[1][-1] == EOS]
            found[group] += [(score(c[3], length), c[1][:-1]) for c in ended]
            going_on = [c for c in candidates[: 2 * width] if c[1][-1] != EOS][:width]
            n_taken.update(ids[-1] for _, ids, _, _ in going_on)
            live[group] = [c[1:] for c in going_on]
            if length == max_len:
                found[group] += [(score(total, length), ids) for ids, _, total in live[group]]
            if len(found[group]) >= width:
                live[group] = []
    return {ids for group in found for _, ids in sorted(group, reverse=True)[:width]}


@pytest.mark.parametrize("penalty", [0.0, 0.3, 2.0])
@pytest.mark.parametrize(("n_groups", "width"), [(2, 1), (2, 2), (3, 2), (4, 3)])
def test_diverse_search_equals_one_candidate_at_a_time(
    n_groups: int, width: int, penalty: float
) -> None:
    for seed in range(8):
        table = random_table(seed, 1)
        n = n_groups * width
        found = run(
            diverse_beam_search,
            table,
            5,
            beam_size=n,
            n_best=n,
            beam_groups=n_groups,
            diversity_penalty=penalty,
        )[0]
        expected = naive_diverse_search(table, 5, n_groups, width, penalty)
        assert {h.ids for h in found} == expected
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_groups_without_a_penalty_are_beams() -> None:
    table = random_table(13, 10)
    beams = run(beam_search, table, 6, beam_size=3, n_best=3)
    settings = {"beam_groups": 2, "diversity_penalty": 0.0}
    assert run(search, table, 6, beam_size=6, n_best=6, **settings) == beams


def test_groups_with_a_large_penalty_begin_with_different_words() -> None:
    settings = {"beam_groups": 4, "diversity_penalty": 1000.0}
    for some in run(search, random_table(14, 10), 6, beam_size=4, n_best=4, min_len=1, **settings):
        assert len({h.ids[0] for h in some}) == 4


def test_the_penalty_is_not_part_of_the_score() -> None:
    table = random_table(15, 5)
    settings = {"beam_groups": 3, "diversity_penalty": 5.0}
    every = {ids: log_prob for ids, log_prob, _, _ in every_output(table, 4)}
    for hypothesis in run(search, table, 4, beam_size=3, n_best=3, **settings)[0]:
        assert hypothesis.log_prob == pytest.approx(every[hypothesis.ids])


def test_a_diverse_search_does_not_depend_on_its_batch() -> None:
    table = random_table(16, 12)
    limits = [1 + i % 7 for i in range(12)]
    settings = {"beam_size": 6, "n_best": 6, "beam_groups": 3}
    together = run(search, table, limits, **settings)
    for i in range(12):
        assert run(search, table[i : i + 1], limits[i : i + 1], **settings)[0] == together[i]


def test_sample_frequencies_follow_the_probabilities() -> None:
    table = table_of({(): {A: 0.5, B: 0.3, C: 0.2}}).expand(4000, -1, -1)
    limits = torch.full((4000,), 2)

    def shares(**settings: float) -> dict[int, float]:
        config = SearchConfig(sample=True, **settings)
        counts = Counter(h.ids for (h,) in search(TableStep(table), 4000, limits, config))
        return {ids[0]: n / 4000 for ids, n in counts.items()}

    assert shares() == pytest.approx({A: 0.5, B: 0.3, C: 0.2}, abs=0.03)
    squares = 0.25 + 0.09 + 0.04
    expected = {A: 0.25 / squares, B: 0.09 / squares, C: 0.04 / squares}
    assert shares(temperature=0.5) == pytest.approx(expected, abs=0.03)
    assert shares(top_k=2) == pytest.approx({A: 0.625, B: 0.375}, abs=0.03)
    assert shares(top_p=0.7) == pytest.approx({A: 0.625, B: 0.375}, abs=0.03)
    assert shares(top_p=0.5) == {A: 1.0}
    assert shares(top_k=1) == {A: 1.0}


def test_cold_sampling_is_greedy() -> None:
    table = random_table(11, 10)
    cold = run(search, table, 6, sample=True, temperature=1e-6)
    assert cold == run(greedy, table, 6)


def test_a_sample_depends_on_seed_and_key_only() -> None:
    table = random_table(12, 6, sharpness=0.5)
    config = SearchConfig(sample=True, n_best=3, length_penalty=0.0)
    limits = torch.full((6,), 8)
    together = sample(TableStep(table), 6, limits, config, keys=range(6))
    for i in range(6):
        alone = sample(TableStep(table[i : i + 1]), 1, limits[:1], config, keys=[i])
        assert alone[0] == together[i]
    assert len({h.ids for some in together for h in some}) > 10
    other = SearchConfig(sample=True, n_best=3, length_penalty=0.0, seed=2)
    assert sample(TableStep(table), 6, limits, other, keys=range(6)) != together
    assert sample(TableStep(table), 6, limits, config, keys=range(6)) == together


def test_sampled_log_probs_are_the_models_own() -> None:
    table = table_of({(): {A: 0.5, B: 0.3, C: 0.2}})
    (hypothesis,) = run(search, table, sample=True, temperature=3.0, top_k=2)[0]
    expected = {A: 0.5, B: 0.3}[hypothesis.ids[0]]
    assert math.exp(hypothesis.log_prob) == pytest.approx(expected)
