import dataclasses
import random
from pathlib import Path

import pytest
import torch

from seq2seq.checkpoint import Model, load_model
from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.engine import Engine, _libraries_found
from seq2seq.engine_format import load_engine_model
from seq2seq.export import export_engine
from seq2seq.hypotheses import length_norm
from seq2seq.model import Transformer
from seq2seq.translator import Translator
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.folder import train_tokenizer
from tokenizer.special import BOS, MASK, PAD, UNK

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
        model.output.weight.data[[PAD, UNK, BOS, MASK]] = -4.0
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


@pytest.mark.parametrize("shape", SHAPES)
def test_given_translations_score_as_with_us(
    shape: dict[str, str], pairs: list[tuple[str, str]], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    some = [*pairs[:40], ("", "a dog"), ("a dog", ""), (" ", " "), ("the\ncat", "  a man ")]
    ours, theirs = export_random(small_tokenizer, tmp_path, **shape)
    theirs = Translator(theirs.model, small_tokenizer, batch_tokens=50, n_workers=2)
    for penalty in (0.0, 1.4):
        expected = ours.score(some, length_penalty=penalty)
        for a, b in zip(expected, theirs.score(some, length_penalty=penalty), strict=True):
            assert (b.text, b.ids, b.finished) == (a.text, a.ids, a.finished)
            assert b.token_log_probs == pytest.approx(a.token_log_probs, abs=1e-4)
            assert b.log_prob == pytest.approx(a.log_prob, abs=1e-4)
            assert b.score == pytest.approx(a.score, abs=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(beam_size=1),
        SearchConfig(beam_size=4, n_best=4),
        SearchConfig(beam_size=3, n_best=3, min_len=6, no_repeat_ngram=2, length_penalty=-1.0),
    ],
)
def test_what_the_engine_finds_has_the_scores_that_it_gives_to_it(
    config: SearchConfig, lines: list[str], small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, theirs = export_random(small_tokenizer, tmp_path, tie_embeddings="none")
    engine = theirs.model
    assert isinstance(engine, Engine)
    sources = [ids for ids in small_tokenizer.encode_batch(lines) if ids]
    limits = [12] * len(sources)
    found = engine.search(sources, limits, config)
    as_searched = engine.search(sources, limits, config, with_scores=False)
    for source, hypotheses, others in zip(sources, found, as_searched, strict=True):
        assert {h.ids for h in hypotheses} == {h.ids for h in others}
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for h in hypotheses:
            (each,) = engine.score([source], [h.ids])
            n = len(h.ids) + h.finished
            assert h.token_log_probs == pytest.approx(each[:n], abs=1e-4)
            assert h.log_prob == pytest.approx(sum(each[:n]), abs=1e-4)
            assert h.score == pytest.approx(h.log_prob / length_norm(n, config.length_penalty))
            if config.min_len == 0:  # nothing was forbidden
                (same,) = (other for other in others if other.ids == h.ids)
                assert same.log_prob == pytest.approx(h.log_prob, abs=1e-3)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_translations_begin_and_go_on_as_ours_do_after_a_prefix(
    beam_size: int,
    pairs: list[tuple[str, str]],
    lines: list[str],
    small_tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    ours, theirs = export_random(small_tokenizer, tmp_path, tie_embeddings="none")
    beginnings = [tgt if i % 3 else "" for i, (_, tgt) in enumerate(pairs[: len(lines)])]
    config = SearchConfig(beam_size=beam_size, max_repeats=0, length_penalty=0.0)
    none = [None] * len(lines)
    expected = ours.alternatives(lines, config, none, beginnings)
    found = theirs.alternatives(lines, config, none, beginnings)
    for beginning, (a,), (b,) in zip(beginnings, expected, found, strict=True):
        if beam_size > 1 and beginning and a.text == beginning:
            continue  # CTranslate2 ends there only where nothing is more probable
        assert (b.text, b.finished, b.ids) == (a.text, a.finished, a.ids)
        assert b.token_log_probs == pytest.approx(a.token_log_probs, abs=1e-4)
        assert b.score == pytest.approx(a.score, abs=1e-4)


def test_a_prefix_that_leaves_no_choice_gives_one_translation(
    small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, theirs = export_random(small_tokenizer, tmp_path)
    engine = theirs.model
    assert isinstance(engine, Engine)
    ids = small_tokenizer.encode("the big dog sleeps")
    (found,) = engine.search([ids], [len(ids)], SearchConfig(beam_size=4, n_best=4), [ids])
    assert [(h.ids, h.finished) for h in found] == [(tuple(ids), False)]
    assert found[0].log_prob == pytest.approx(sum(engine.score([ids], [ids])[0][:-1]))


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
    in_parts = Translator(theirs.model, small_tokenizer, batch_tokens=20, n_workers=2)
    assert in_parts.translate(lines, GREEDY) == together


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
    with pytest.raises(UserError, match="can translate and score and nothing else"):
        load_model(tmp_path / "out")


def test_a_model_that_overflows_is_an_error_for_the_user(
    model_folder: Path, tmp_path: Path
) -> None:
    saved = load_model(model_folder)
    for name in ("encoder_norm.weight", "decoder_norm.weight"):
        saved.weights[name].fill_(3e38)
    for kind, advice in (("float32", ""), ("int8", "--precision fp32, or ")):
        export_engine(saved, kind, tmp_path / kind)
        translator = Translator.load(tmp_path / kind, "cpu")
        message = f"{kind}: computes numbers that are not finite; try {advice}another checkpoint"
        for beam_size in (1, 4):
            with pytest.raises(UserError, match=message):
                translator.translate(["a dog"], beam_size=beam_size)
        with pytest.raises(UserError, match=message):
            translator.score([("a dog", "a cat")])


def test_a_model_of_several_languages_translates_and_scores_as_with_us(
    parallel: tuple[Path, Path], lines: list[str], tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(parallel, vocab_size=300, tags=["de", "fr"])
    ours, theirs = export_random(tokenizer, tmp_path)
    pairs = [(line, "a cat") for line in lines]
    found = theirs.alternatives(lines, GREEDY, ["de"] * len(lines))
    assert not {i for some in found for t in some for i in t.ids} & set(tokenizer.tags.values())
    for name in ("de", "fr"):
        assert theirs.translate(lines, GREEDY, tgt_lang=name) == ours.translate(
            lines, GREEDY, tgt_lang=name
        )
        expected = [t.log_prob for t in ours.score(pairs, name)]
        assert [t.log_prob for t in theirs.score(pairs, name)] == pytest.approx(expected, abs=1e-4)


def test_what_the_engine_refuses_is_an_error_for_the_user(
    model_folder: Path, tmp_path: Path
) -> None:
    export_engine(load_model(model_folder), "float32", tmp_path / "out")
    model = load_engine_model(tmp_path / "out")
    broken = dataclasses.replace(model, files={**model.files, "model.bin": b"none"})
    with pytest.raises(UserError, match="CTranslate2 cannot use it"):
        Engine(broken, CPU, "auto")


def test_a_library_that_the_gpu_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"libcublas\.so\.12 .* --device cpu"), _libraries_found():
        raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")
    with pytest.raises(RuntimeError, match="other"), _libraries_found():
        raise RuntimeError("something other")
