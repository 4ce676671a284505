from itertools import chain

import pytest
import torch
from torch import Tensor

from seq2seq.batch import Example, collate
from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.decoder import EnsembleStep, ModelStep
from seq2seq.hypotheses import Hypothesis
from seq2seq.model import Transformer
from seq2seq.search import search
from tokenizer.special import EOS, N_SPECIAL

V = 40
SEARCHES = {
    "greedy": SearchConfig(beam_size=1),
    "beam": SearchConfig(beam_size=4, n_best=4),
    "wide": SearchConfig(beam_size=60, n_best=2),
    "sample": SearchConfig(sample=True, n_best=3),
    "bound": SearchConfig(beam_size=3, min_len=3, no_repeat_ngram=2),
}


def tiny_model(seed: int = 0, positions: str = "sinusoidal") -> Transformer:
    """Random weights, sharpened so that outputs vary and end at different lengths; float64."""
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=V, d_model=16, d_ff=32, n_heads=2, n_encoder_layers=1, n_decoder_layers=2
    )
    model = Transformer(config).double().eval().requires_grad_(False)
    model.output.weight.mul_(3)
    model.output.weight[EOS] *= 1.5
    return model


def sources(n: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(N_SPECIAL, V, (1 + i * 5 % 9,), generator=generator).tolist()
        for i in range(n)
    ]


def pad(ids: list[list[int]]) -> Tensor:
    return collate([Example(row, None, i) for i, row in enumerate(ids)]).src


class UncachedStep:
    """The same model without a cache: it decodes whole prefixes again at every step."""

    def __init__(self, model: Transformer, src: Tensor) -> None:
        self.model, self.src = model, src
        self.prefixes = src.new_empty(len(src), 0)

    def __call__(self, last_ids: Tensor) -> Tensor:
        self.prefixes = torch.cat((self.prefixes, last_ids[:, None]), 1)
        return self.model.decode(self.prefixes, self.model.encode(self.src))[:, -1]

    def select(self, rows: Tensor, sentences: Tensor | None) -> None:
        self.prefixes = self.prefixes[rows]
        self.src = self.src if sentences is None else self.src[sentences]


def same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> bool:
    """Equal outputs; the numbers up to the rounding of sums in another order."""
    pairs = zip(chain(*found), chain(*expected), strict=True)
    return all(
        a.ids == b.ids and a.finished == b.finished and a.score == pytest.approx(b.score, rel=1e-10)
        for a, b in pairs
    )


def translate(
    model: Transformer, ids: list[list[int]], config: SearchConfig
) -> list[list[Hypothesis]]:
    limits = torch.tensor([len(row) + 6 for row in ids])
    keys = [row[0] * 1000 + len(row) for row in ids]
    return search(ModelStep(model, pad(ids)), len(ids), limits, config, keys)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_batch_changes_no_translation(name: str) -> None:
    model, ids, config = tiny_model(), sources(), SEARCHES[name]
    together = translate(model, ids, config)
    assert len({h.ids for some in together for h in some}) > 5
    for size in (1, 5):
        parts = [ids[i : i + size] for i in range(0, len(ids), size)]
        assert same(list(chain(*(translate(model, part, config) for part in parts))), together)
    backwards = translate(model, ids[::-1], config)[::-1]
    assert same(backwards, together)


@pytest.mark.parametrize("name", SEARCHES)
def test_cached_search_equals_recomputing_everything(name: str) -> None:
    model, src = tiny_model(2), pad(sources())
    limits = torch.arange(len(src)) % 8 + 4
    cached = search(ModelStep(model, src), len(src), limits, SEARCHES[name])
    assert same(cached, search(UncachedStep(model, src), len(src), limits, SEARCHES[name]))


def test_log_prob_of_an_output_is_what_the_model_gives_it() -> None:
    model, ids = tiny_model(3), sources()
    for row, (best,) in zip(ids, translate(model, ids, SearchConfig(beam_size=4)), strict=True):
        batch = collate([Example(row, list(best.ids), 0)])
        log_probs = model(batch.src, batch.tgt_in).log_softmax(-1)
        each = log_probs.gather(2, batch.tgt_out[..., None])[0, :, 0].tolist()
        assert best.token_log_probs == pytest.approx(each[: len(best.token_log_probs)])
        assert best.log_prob == pytest.approx(sum(each[: len(best.token_log_probs)]))


def test_prefixes_go_on_from_any_selection() -> None:
    model, src = tiny_model(), pad(sources(4))
    step, uncached = ModelStep(model, src), UncachedStep(model, src)
    generator = torch.Generator().manual_seed(0)
    present = torch.arange(4)
    last_ids, width = torch.full((4,), 2), 1
    for n_sentences in (4, 4, 3, 3, 1, 1):
        assert torch.allclose(step(last_ids), uncached(last_ids))
        kept = torch.randperm(len(present), generator=generator)[:n_sentences]
        beams = torch.randint(0, width, (n_sentences, 3), generator=generator)
        rows = (kept[:, None] * width + beams).flatten()
        for either in (step, uncached):
            either.select(rows, kept)
        present, width = present[kept], 3
        last_ids = torch.randint(N_SPECIAL, V, (len(rows),), generator=generator)


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_an_ensemble_of_one_model_twice_is_the_model(name: str) -> None:
    model, src = tiny_model(), pad(sources())
    limits = torch.full((len(src),), 9)
    alone = search(ModelStep(model, src), len(src), limits, SEARCHES[name])
    twice = EnsembleStep([ModelStep(model, src), ModelStep(model, src)])
    assert same(search(twice, len(src), limits, SEARCHES[name]), alone)


def test_an_ensemble_averages_probabilities() -> None:
    src, models = pad(sources()), [tiny_model(0), tiny_model(1)]
    last_ids = torch.full((len(src),), 2)
    each = [ModelStep(model, src)(last_ids).softmax(-1) for model in models]
    both = EnsembleStep([ModelStep(model, src) for model in models])(last_ids)
    assert torch.allclose(both.exp(), (each[0] + each[1]) / 2)


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_half_precision_models_search_too(name: str) -> None:
    model, src = tiny_model().bfloat16(), pad(sources())
    found = search(ModelStep(model, src), len(src), torch.full((len(src),), 9), SEARCHES[name])
    assert all(some and all(h.log_prob < 0 for h in some) for some in found)
