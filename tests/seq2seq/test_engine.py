import dataclasses
import random
from pathlib import Path

import pytest
import torch

from seq2seq.checkpoint import Model, load_model
from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.engine import Engine
from seq2seq.engine_format import load_engine_model
from seq2seq.export import export_engine
from seq2seq.hypotheses import length_norm
from seq2seq.logits import NEVER_PRODUCED
from seq2seq.model import Transformer
from seq2seq.translator import Translator
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError

CPU = torch.device("cpu")
GREEDY = SearchConfig(beam_size=1, max_repeats=0)
SHAPES = [
    {},
    {"norm": "post", "activation": "gelu", "tie_embeddings": "none"},
    {"norm_type": "rms", "activation": "swiglu", "positions": "rotary"},
    {"positions": "learned", "tie_embeddings": "target"},
]


def export_random(
    tokenizer: Tokenizer, folder: Path, seed: int = 0, **shape: str
) -> tuple[Translator, Translator]:
    """A model that is sure of itself, and what became of it."""
    sizes = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_encoder_layers": 2, "n_decoder_layers": 2}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **sizes, **shape)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    model = Transformer(config).eval()
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.5)
    if config.tie_embeddings == "none" and config.norm == "pre":  # control ids become improbable
        torch.nn.init.constant_(model.decoder_norm.bias, 0.5)
        model.output.weight.data[NEVER_PRODUCED] = -4.0
    model.tie()
    weights = {name: w.detach() for name, w in model.named_parameters()}
    export_engine(Model(config, weights, tokenizer, folder), "float32", folder / "out")
    return Translator(model, tokenizer), Translator.load(folder / "out", "cpu")


@pytest.fixture
def lines(pairs: list[tuple[str, str]]) -> list[str]:
    return [src for src, _ in pairs[:30]] + ["", "  "]


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_translations_equal_ours(
    shape: dict[str, str], lines: list[str], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ours, theirs = export_random(small_tokenizer, tmp_path, **shape)
    assert theirs.translate(lines, GREEDY) == ours.translate(lines, GREEDY)
    assert theirs.notes == ours.notes


@pytest.mark.parametrize("beam_size", [1, 4])
def test_scores_equal_ours_where_no_control_id_is_probable(
    beam_size: int, lines: list[str], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    translators = export_random(small_tokenizer, tmp_path, tie_embeddings="none")
    config = SearchConfig(beam_size=beam_size, length_penalty=0.7, max_repeats=0)
    ours, theirs = (t.alternatives(lines, config, with_scores=False) for t in translators)
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert (b.text, b.finished) == (a.text, a.finished)
        assert b.log_prob == pytest.approx(a.log_prob, abs=1e-3)
        assert b.score == pytest.approx(a.score, abs=1e-3)


def test_hypotheses_are_ranked_by_our_formula(
    lines: list[str], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, theirs = export_random(small_tokenizer, tmp_path)
    engine = theirs.model
    assert isinstance(engine, Engine)
    sources = [ids for ids in small_tokenizer.encode_batch(lines) if ids]
    for penalty in (0.0, 0.6, 1.4, -1.0):
        config = SearchConfig(beam_size=4, n_best=4, length_penalty=penalty, max_repeats=0)
        for hypotheses in engine.search(sources, [20] * len(sources), config):
            assert 1 <= len(hypotheses) <= 4
            scores = [h.score for h in hypotheses]
            assert scores == sorted(scores, reverse=True)
            for h in hypotheses:
                n = len(h.ids) + h.finished
                assert h.score == pytest.approx(h.log_prob / length_norm(float(n), penalty))


def test_no_translation_is_longer_than_its_own_limit_or_holds_a_control_id(
    lines: list[str], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rng = random.Random(0)
    _, theirs = export_random(small_tokenizer, tmp_path, seed=1)
    engine = theirs.model
    assert isinstance(engine, Engine)
    sources = [ids for ids in small_tokenizer.encode_batch(lines) if ids]
    limits = [rng.randint(1, 30) for _ in sources]
    for beam_size in (1, 3):
        found = engine.search(sources, limits, SearchConfig(beam_size=beam_size, n_best=beam_size))
        for hypotheses, limit in zip(found, limits, strict=True):
            assert max(len(h.ids) for h in hypotheses) <= limit
            assert all(h.finished or len(h.ids) == limit for h in hypotheses)
            assert all(i > 4 for h in hypotheses for i in h.ids)


def test_the_shortest_length_and_n_grams_are_kept(
    lines: list[str], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, theirs = export_random(small_tokenizer, tmp_path)
    engine = theirs.model
    assert isinstance(engine, Engine)
    sources = [ids for ids in small_tokenizer.encode_batch(lines) if ids]
    config = SearchConfig(beam_size=2, min_len=8, no_repeat_ngram=2)
    for (best,) in engine.search(sources, [25] * len(sources), config):
        assert len(best.ids) >= 8
        bigrams = list(zip(best.ids, best.ids[1:], strict=False))
        assert len(set(bigrams)) == len(bigrams)


def test_a_batch_does_not_change_a_translation(
    lines: list[str], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, theirs = export_random(small_tokenizer, tmp_path)
    together = theirs.translate(lines, GREEDY)
    assert together == [text for line in lines for text in theirs.translate([line], GREEDY)]
    theirs.n_workers = 2
    theirs.batch_tokens = 20
    assert theirs.translate(lines, GREEDY) == together


def test_what_the_engine_lacks_is_refused_by_name(model_folder: Path, tmp_path: Path) -> None:
    export_engine(load_model(model_folder), "int8", tmp_path / "out")
    with pytest.raises(UserError, match="--precision fp64: CTranslate2 does not have it"):
        Translator.load(tmp_path / "out", "cpu", "fp64")
    translator = Translator.load(tmp_path / "out", "cpu")
    with pytest.raises(UserError, match="--sample: "):
        translator.translate(["a dog"], SearchConfig(sample=True))
    with pytest.raises(UserError, match="--beam-groups: "):
        translator.translate(["a dog"], SearchConfig(beam_size=4, beam_groups=2))
    with pytest.raises(UserError, match="--max-repeats: "):
        translator.translate(["a dog"], SearchConfig(max_repeats=3))
    with pytest.raises(UserError, match="--prefix: "):
        translator.translate(["a dog"], prefixes=["the"])
    with pytest.raises(UserError, match="cannot score"):
        translator.score([("a dog", "a dog")])
    with pytest.raises(UserError, match="can translate and nothing else"):
        load_model(tmp_path / "out")


def test_what_the_engine_refuses_is_an_error_for_the_user(
    model_folder: Path, tmp_path: Path
) -> None:
    export_engine(load_model(model_folder), "float32", tmp_path / "out")
    model = load_engine_model(tmp_path / "out")
    broken = dataclasses.replace(model, files={**model.files, "model.bin": b"none"})
    with pytest.raises(UserError, match="CTranslate2 cannot use it"):
        Engine(broken, CPU, "auto")
