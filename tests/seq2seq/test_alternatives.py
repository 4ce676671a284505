import itertools

import pytest
import torch
from letters import GREEDY, Letters, exact_translator, letters_model, some_lines

from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.model import Transformer
from seq2seq.translator import Translator
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError


def test_as_many_alternatives_as_asked_for_best_first() -> None:
    config = SearchConfig(beam_size=4, n_best=3)
    lines = some_lines(6)
    alternatives = exact_translator().alternatives([*lines, ""], config)
    assert [len(a) for a in alternatives] == [3] * 6 + [1]
    for line in alternatives[:6]:
        assert [t.score for t in line] == sorted((t.score for t in line), reverse=True)
        assert len({t.text for t in line}) == 3
    assert [a[0].text for a in alternatives[:6]] == exact_translator().translate(
        lines, SearchConfig(beam_size=4)
    )


class Spellings(Letters):
    """A letter has many ids, as a text has many pieces for a model trained with BPE-dropout."""

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        return ["".join("ab"[i % 2] for i in ids) for ids in batch]


def test_alternatives_differ_as_texts_as_far_as_there_are_some() -> None:
    translator = Translator(letters_model(), Spellings())  # type: ignore[arg-type]
    settings = {"beam_size": 8, "max_len_factor": 0.1, "max_len_extra": 1}
    lines = some_lines(10)
    every = translator.alternatives(lines, SearchConfig(n_best=8, **settings))
    n_texts = [len({t.text for t in found}) for found in every]
    assert min(n_texts) < 3 <= max(n_texts)
    for n_best in (1, 3, 7):
        found = translator.alternatives(lines, SearchConfig(n_best=n_best, **settings))
        for some, n in zip(found, n_texts, strict=True):
            assert len(some) == n_best
            assert len({t.text for t in some}) == min(n, n_best)
            assert [t.score for t in some] == sorted((t.score for t in some), reverse=True)
    drawn = SearchConfig(sample=True, n_best=3)
    assert {len(found) for found in translator.alternatives(some_lines(5), drawn)} == {3}


@pytest.mark.parametrize("config", [GREEDY, SearchConfig(beam_size=3, n_best=3)])
def test_the_score_of_its_own_output_is_the_score_of_the_search(config: SearchConfig) -> None:
    translator = Translator(letters_model(), Letters())  # type: ignore[arg-type]
    lines = some_lines(10)
    for line, alternatives in zip(lines, translator.alternatives(lines, config), strict=True):
        for found in alternatives:
            (scored,) = translator.score([(line, found.text)])
            n = len(found.text) + found.finished  # one that was cut has no EOS
            assert len(found.token_log_probs) == n
            assert scored.token_log_probs[:n] == pytest.approx(found.token_log_probs, abs=1e-4)
            assert sum(found.token_log_probs) == pytest.approx(found.log_prob, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.4])
def test_the_score_is_normalised_as_the_search_does_it(length_penalty: float) -> None:
    model = letters_model().double()
    model.output.weight.data *= 3  # so that some outputs end
    translator = Translator(model, Letters())  # type: ignore[arg-type]
    config = SearchConfig(beam_size=3, n_best=3, length_penalty=length_penalty)
    lines = some_lines(10)
    finished = 0
    for line, alternatives in zip(lines, translator.alternatives(lines, config), strict=True):
        for found in (t for t in alternatives if t.finished):
            (scored,) = translator.score([(line, found.text)], length_penalty=length_penalty)
            assert scored.score == pytest.approx(found.score)
            assert scored.ids == found.ids
            finished += 1
    assert finished > 5


@pytest.mark.parametrize("config", [GREEDY, SearchConfig(beam_size=4, n_best=3)])
def test_text_found_in_other_pieces_is_scored_in_the_tokenizers_own(
    small_tokenizer: Tokenizer, config: SearchConfig
) -> None:
    torch.manual_seed(1)
    shape = ModelConfig(vocab_size=small_tokenizer.vocab_size, d_model=16, d_ff=32, n_heads=2)
    model = Transformer(shape).eval().double()
    model.output.weight.data *= 3  # so that some outputs end
    translator = Translator(model, small_tokenizer)
    words = ("a", "dog", "runs", "cat", "sleeps")
    lines = [" ".join(some) for some in itertools.product(words, repeat=3)]
    n_others = 0
    every = translator.alternatives(lines, config)
    as_found = translator.alternatives(lines, config, with_scores=False)
    for line, alternatives, found in zip(lines, every, as_found, strict=True):
        assert [t.score for t in alternatives] == sorted(t.score for t in alternatives)[::-1]
        for t in (t for t in alternatives if t.finished and t.text == t.text.strip()):
            (scored,) = translator.score([(line, t.text)])
            assert scored.score == pytest.approx(t.score, abs=1e-9)
            assert scored.token_log_probs == pytest.approx(t.token_log_probs, abs=1e-9)
            assert scored.ids == t.ids
            n_others += t.ids not in {f.ids for f in found}
    assert n_others > 3
    if config.n_best == 1:
        assert [t.text for (t,) in every] == [t.text for (t,) in as_found]


def test_scores_do_not_depend_on_the_batch() -> None:
    pairs = list(zip(some_lines(12), reversed(some_lines(12)), strict=True))
    together = exact_translator().score(pairs)
    small = exact_translator(batch_tokens=1).score(pairs)
    assert [s.log_prob for s in together] == pytest.approx([s.log_prob for s in small])
    assert [s.text for s in together] == [target for _, target in pairs]
    for s, (_, target) in zip(together, pairs, strict=True):
        assert len(s.token_log_probs) == len(target) + 1  # EOS
        assert sum(s.token_log_probs) == pytest.approx(s.log_prob)


def test_empty_sides_can_be_scored() -> None:
    nothing, empty_target = exact_translator().score([("", "abc"), ("abc", "")])
    assert nothing.log_prob == 0.0
    assert len(empty_target.token_log_probs) == 1


def test_a_pair_too_long_to_score_is_refused_by_line() -> None:
    with pytest.raises(UserError, match=r"line 2: 300 tokens, more than the 256"):
        exact_translator().score([("a", "b"), ("a", "b" * 300)])
