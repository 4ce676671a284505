import random

import pytest
import torch

from seq2seq.logits import LONGEST_LOOP, forbid_loops, largest, log_sum_exp, longest_loop
from tokenizer.special import N_SPECIAL, PAD


@pytest.mark.parametrize("width", [3, 17, 300])
def test_largest_is_a_stable_sort(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    coarse = torch.randint(0, 9, (50, width), generator=generator).bfloat16()
    for n in (1, 2, 3, min(width, 20)):
        values, places = coarse.sort(dim=1, descending=True, stable=True)
        found = largest(coarse, n)
        assert torch.equal(found[0], values[:, :n])
        assert torch.equal(found[1], places[:, :n])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_sum_exp_makes_logits_log_probabilities(dtype: torch.dtype) -> None:
    logits = 5 * torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    total = (logits.double() - log_sum_exp(logits)).exp().sum(1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def loops(ids: list[int], at_end: bool = False) -> dict[int, int]:
    """For each size of a sequence how often it comes in a row, at most or at the end."""
    found = {}
    for size in range(1, LONGEST_LOOP + 1):
        counts = [1] if len(ids) >= size else []
        for end in [len(ids)] if at_end else range(size, len(ids) + 1):
            n, copy = 1, ids[end - size : end]
            while copy and ids[max(end - (n + 1) * size, 0) : end - n * size] == copy:
                n += 1
            counts.append(n)
        found[size] = max(counts, default=0)
    return found


def random_sequences(n: int) -> list[list[int]]:
    rng = random.Random(0)
    words = range(N_SPECIAL, N_SPECIAL + 2)
    return [
        rng.choices(words, k=rng.randint(0, 6)) + rng.choices(words, k=rng.randint(1, 9)) * 3
        for _ in range(n)
    ]


def test_the_longest_loop_is_that_of_a_search_by_hand() -> None:
    sequences = [*random_sequences(200), [], [7], list(range(7, 40))]
    width = max(map(len, sequences))
    padded = torch.tensor([ids + [PAD] * (width - len(ids)) for ids in sequences])
    assert longest_loop(padded).tolist() == [max(loops(ids).values()) for ids in sequences]


@pytest.mark.parametrize("most", [2, 3, 5])
def test_only_another_round_of_a_loop_is_forbidden(most: int) -> None:
    for ids in random_sequences(200):
        logits = torch.zeros(1, N_SPECIAL + 2)
        forbid_loops(logits, torch.tensor([ids]), torch.tensor([most]))
        at_end = loops(ids, at_end=True)
        expected = {ids[-size] for size, n in at_end.items() if n >= most}
        assert set((logits[0] == -torch.inf).nonzero()[:, 0].tolist()) == expected
