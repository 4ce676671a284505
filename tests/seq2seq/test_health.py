import math
from dataclasses import replace

import pytest

from seq2seq.corpus import Corpus
from seq2seq.health import Health, has_collapsed, word_entropy
from seq2seq.reports import StepReport, ValidationReport

STEP = StepReport(
    step=200,
    epoch=1,
    epochs=0.5,
    loss=3.0,
    nll=3.0,
    lr=0.001,
    norm=0.5,
    tokens_per_second=1.0,
    wait=0.0,
    padding=0.0,
    seconds=1.0,
)
VALID = ValidationReport(
    step=200, nll=3.0, bleu=1.0, chrf=1.0, is_best=True, samples=(), collapsed=False, seconds=1.0
)


def healthy(best_train: float = 3.0) -> Health:
    health = Health(word_entropy=5.0, warmup_steps=100)
    assert health.step(replace(STEP, nll=best_train)) == []
    assert health.validation(VALID) == []
    return health


@pytest.mark.parametrize("nll", [2.0, 3.0, 3.9])
@pytest.mark.parametrize("norm", [0.001, 0.5, 9.0])
def test_a_training_that_wavers_is_left_in_peace(nll: float, norm: float) -> None:
    health = healthy()
    assert health.step(replace(STEP, nll=nll, norm=norm)) == []
    assert health.validation(replace(VALID, nll=nll)) == []


def test_a_rising_training_loss_is_called_divergence_once() -> None:
    health = healthy()
    (message,) = health.step(replace(STEP, nll=4.1))
    assert "rose from 3.00 to 4.10" in message
    assert "diverges; lower optim.lr" in message
    assert health.step(replace(STEP, nll=4.2)) == []
    assert health.step(replace(STEP, nll=2.9)) == []
    assert len(health.step(replace(STEP, nll=4.2))) == 1


def test_a_rising_validation_loss_under_a_falling_training_loss_is_learning_by_heart() -> None:
    health = healthy()
    health.step(replace(STEP, nll=0.5))
    (message,) = health.validation(replace(VALID, nll=4.5))
    assert "overfitting" in message


def test_a_steep_gradient_is_named_and_does_not_become_usual() -> None:
    health = healthy()
    for _ in range(2):
        (message,) = health.step(replace(STEP, norm=100.0))
        assert "gradient norm is 100, usually" in message


def test_a_model_no_better_than_word_frequencies_is_named_after_the_warm_up() -> None:
    health = Health(word_entropy=5.0, warmup_steps=100)
    assert health.validation(replace(VALID, step=100, nll=5.5)) == []
    (message,) = health.validation(replace(VALID, step=101, nll=5.5))
    assert "frequency of words (5.00)" in message


def test_the_same_translation_for_many_sentences_is_named_after_the_warm_up() -> None:
    health = healthy()
    assert health.validation(replace(VALID, step=100, collapsed=True)) == []
    (message,) = health.validation(replace(VALID, collapsed=True))
    assert "same translation for many sentences" in message


def test_many_sentences_are_judged_by_how_many_of_them_differ() -> None:
    sources = [f"sentence {i % 20}" for i in range(1000)]
    assert not has_collapsed(sources, [s.upper() for s in sources])
    assert has_collapsed(sources, ["yes"] * 1000)
    assert has_collapsed(sources[:20], ["yes"] * 20)
    assert not has_collapsed(sources[:20], ["yes", "no"] * 10)
    assert not has_collapsed(sources[:19] * 50, ["yes"] * 19 * 50)


def test_word_entropy_is_that_of_the_counts(small_corpus: Corpus) -> None:
    counts: dict[int, int] = {-1: len(small_corpus)}  # EOS
    for i in range(len(small_corpus)):
        for token in small_corpus[i].sides()[1]:
            counts[token] = counts.get(token, 0) + 1
    total = sum(counts.values())
    expected = -sum(n / total * math.log(n / total) for n in counts.values())
    assert word_entropy(small_corpus) == pytest.approx(expected)
