import dataclasses
import itertools
import random
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.model import Transformer
from seq2seq.translator import WINDOW, Translator, split_long
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.folder import train_tokenizer

GREEDY = SearchConfig(beam_size=1)
BEAM = SearchConfig(beam_size=3)


ALPHABET = "-abcdefghijklmnopqrstuvwxyz"


class Letters:
    """Characters as ids: the ids that a search finds are those that their text encodes to."""

    vocab_size = 5 + 27
    tags: ClassVar[dict[str, int]] = {}

    def encode(self, text: str) -> list[int]:
        return [5 + ALPHABET.index(c) for c in text]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        return ["".join(ALPHABET[i - 5] for i in ids) for ids in batch]


def letters_model(positions: str = "sinusoidal") -> Transformer:
    torch.manual_seed(3)
    config = ModelConfig(
        vocab_size=Letters.vocab_size,
        d_model=16,
        d_ff=32,
        n_heads=2,
        n_encoder_layers=1,
        n_decoder_layers=1,
        positions=positions,
        max_positions=16,
    )
    return Transformer(config).eval()


def exact_translator(batch_tokens: int = 4096, n_workers: int = 1) -> Translator:
    model = letters_model().double()
    return Translator(model, Letters(), batch_tokens, n_workers)  # type: ignore[arg-type]


def some_lines(n: int) -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 4))) for _ in range(20)]
    return ["-".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(n)]


# Order and count


@pytest.mark.parametrize("config", [GREEDY, BEAM])
@pytest.mark.parametrize("batch_tokens", [1, 40, 300])
def test_the_size_of_batches_changes_no_text(config: SearchConfig, batch_tokens: int) -> None:
    lines = some_lines(24)
    expected = exact_translator().translate(lines, config)
    assert len(set(expected)) > 12  # the model does look at the source
    assert exact_translator(batch_tokens).translate(lines, config) == expected


@pytest.mark.parametrize("config", [GREEDY, BEAM])
def test_each_line_has_its_own_translation_whatever_the_order(config: SearchConfig) -> None:
    lines = some_lines(24)
    expected = dict(zip(lines, exact_translator().translate(lines, config), strict=True))
    random.Random(1).shuffle(lines)
    assert exact_translator().translate(lines, config) == [expected[line] for line in lines]
    alone = [exact_translator().translate([line], config)[0] for line in lines[:6]]
    assert alone == [expected[line] for line in lines[:6]]


@pytest.mark.parametrize("config", [GREEDY, BEAM])
def test_several_workers_give_what_one_gives(config: SearchConfig) -> None:
    lines = some_lines(24)
    expected = exact_translator(30).translate(lines, config)
    assert exact_translator(30, n_workers=2).translate(lines, config) == expected


NASTY = ["", " ", "\t", "\u00a0", "\u2028", "a", "\r", "x\0y", "\x1b[31m", "</s> <pad>", "你好 🙂"]


def test_blank_lines_stay_as_they_are_and_none_is_lost(
    small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    translated = Translator(small_model, small_tokenizer).translate(NASTY)
    assert len(translated) == len(NASTY)
    for line, translation in zip(NASTY, translated, strict=True):
        if not line.strip():
            assert translation == line


def test_a_line_break_is_a_space_to_the_model(
    small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    translator = Translator(small_model, small_tokenizer)
    assert translator.translate(["the\ndog\n"]) == translator.translate(["the dog"])


def test_a_beam_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="beam_size: 0 is out of range"):
        exact_translator().translate(["a"], beam_size=0)


def test_no_lines_give_no_lines() -> None:
    assert exact_translator().translate([]) == []
    assert exact_translator().score([]) == []


def test_a_stream_is_read_a_window_at_a_time() -> None:
    taken = itertools.count()
    stream = exact_translator().stream("" for _ in taken)
    assert next(stream) == ""
    assert next(taken) == WINDOW


def test_a_stream_translates_as_a_list_does() -> None:
    lines = some_lines(5)
    stream = exact_translator().stream(iter(lines), beam_size=1)
    assert list(stream) == exact_translator().translate(lines, GREEDY)


# Alternatives


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


# Sampling


def test_what_is_drawn_for_a_line_does_not_depend_on_its_batch() -> None:
    config = SearchConfig(sample=True, seed=7)
    lines = some_lines(12)
    expected = exact_translator().translate(lines, config)
    assert exact_translator(batch_tokens=1).translate(lines, config) == expected
    assert exact_translator().translate([*lines, "more"], config)[:12] == expected
    assert exact_translator().translate(lines, SearchConfig(sample=True, seed=8)) != expected


def test_a_stream_draws_as_one_window_would() -> None:
    config = SearchConfig(sample=True)
    lines = some_lines(6)
    translator = exact_translator()
    parts = [*translator.translate(lines[:2], config), *translator.translate(lines[2:], config)]
    assert parts == exact_translator().translate(lines, config)


# Long lines


LONG_TEXTS = [
    "the dog runs. " * 40,
    "the dog sees the man " * 30,
    "One. Two! Three? Four… five。six！seven " * 8,
    "x" * 1000,
    "你好。" * 100,
    "a" * 50 + " " + "the man. " * 20 + "b" * 50,
]


@pytest.mark.parametrize("text", LONG_TEXTS)
@pytest.mark.parametrize("longest", [7, 20, 64])
def test_a_long_line_is_cut_and_nothing_is_lost(
    text: str, longest: int, small_tokenizer: Tokenizer
) -> None:
    segments = split_long(text, small_tokenizer, longest)
    assert all(0 < len(ids) <= longest for ids in segments)
    whole = small_tokenizer.decode([i for ids in segments for i in ids])
    assert "".join(whole.split()) == "".join(text.split())


def test_sentences_stay_whole_where_they_fit(small_tokenizer: Tokenizer) -> None:
    sentence = "the big dog sees the man."
    longest = 2 * len(small_tokenizer.encode(sentence)) + 2
    segments = split_long(" ".join([sentence] * 5), small_tokenizer, longest)
    texts = [small_tokenizer.decode(ids) for ids in segments]
    assert texts == [f"{sentence} {sentence}", f"{sentence} {sentence}", sentence]


def test_long_lines_are_noted_by_number_and_change_no_other(
    small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    lines = ["the dog", "the dog runs. " * 100, "", "a man"]
    translator = Translator(small_model.double(), small_tokenizer)
    try:
        expected = translator.translate(["the dog", "a man"], GREEDY)
        translated = translator.translate(lines, GREEDY)
    finally:
        small_model.float()
    assert [translated[0], translated[3]] == expected
    assert translator.notes.split == [4]  # two lines came before


def test_translations_that_were_cut_are_noted() -> None:
    never_ends = SearchConfig(beam_size=1, min_len=1000, max_len_factor=0.1, max_len_extra=1)
    translator = exact_translator()
    translator.translate(["a", "", "b"], never_ends)
    assert translator.notes.unfinished == [1, 3]


def test_learned_positions_are_never_exceeded() -> None:
    translator = Translator(letters_model("learned"), Letters())  # type: ignore[arg-type]
    assert translator.longest == 15
    endless = SearchConfig(beam_size=2, min_len=1000)
    assert len(translator.translate(["a" * 100, "b-c"], endless)) == 2
    assert translator.notes.split == [1]


# Loading


def test_a_saved_model_translates_as_before(
    model_folder: Path, small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    lines = ["the dog", "a big man sees the cat"]
    loaded = Translator.load(model_folder, "cpu", "fp32")
    assert loaded.translate(lines) == Translator(small_model, small_tokenizer).translate(lines)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_every_precision_translates(precision: str, model_folder: Path) -> None:
    translated = Translator.load(str(model_folder), "cpu", precision).translate(["the dog"])
    assert len(translated) == 1


def test_what_cannot_be_loaded_is_refused(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Translator.load(tmp_path / "missing")
    with pytest.raises(UserError, match="--precision"):
        Translator.load(model_folder, "cpu", "fp7")


def test_a_model_that_overflows_is_an_error_for_the_user() -> None:
    model = letters_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(3e38)
    with pytest.raises(UserError, match="not finite"):
        Translator(model, Letters()).translate(["abc"])  # type: ignore[arg-type]


# Several languages


@pytest.fixture(scope="module")
def tagged(parallel: tuple[Path, Path]) -> Translator:
    """An untrained model of two languages, exact enough that batches change nothing."""
    tokenizer = train_tokenizer(parallel, vocab_size=300, tags=["de", "fr"])
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes)).double().eval()
    with torch.no_grad():
        model.tgt_embedding.weight.mul_(20)
    return Translator(model, tokenizer)


def test_each_line_is_translated_into_its_own_language(tagged: Translator) -> None:
    lines = ["the dog runs", "a cat", "", "the man sees a big dog"]
    german, french = (tagged.alternatives(lines, GREEDY, [name] * 4) for name in ("de", "fr"))
    mixed = tagged.alternatives(lines, GREEDY, ["de", "fr", "fr", "de"])
    assert german[0][0].log_prob != french[0][0].log_prob
    expected = [german[0], french[1], french[2], german[3]]
    assert [m[0].text for m in mixed] == [e[0].text for e in expected]
    scored = [tagged.score([("a cat", "die Katze")], name)[0].log_prob for name in ("de", "fr")]
    assert scored[0] != scored[1]


def test_a_tag_that_is_typed_is_text(tagged: Translator) -> None:
    config = dataclasses.replace(GREEDY, max_len_extra=1)
    typed, meant = (
        tagged.alternatives([line], config, ["de"])[0][0] for line in ("<2fr> a cat", "a cat")
    )
    assert typed.log_prob != meant.log_prob


def test_parts_of_a_long_line_all_have_the_tag(tagged: Translator) -> None:
    line = "the dog runs. " * 150
    for name in ("de", "fr"):
        assert len(tagged.alternatives([line], GREEDY, [name])) == 1
    assert tagged.longest == 255


@pytest.mark.parametrize(
    ("tgt_lang", "message"),
    [(None, "is missing: give one of de, fr"), ("es", "es: not known; give one of de, fr")],
)
def test_a_language_that_is_missing_or_unknown_is_refused_with_those_there_are(
    tgt_lang: str | None, message: str, tagged: Translator
) -> None:
    with pytest.raises(UserError, match=message):
        tagged.translate(["a"], tgt_lang=tgt_lang)
    with pytest.raises(UserError, match=message):
        tagged.score([("a", "b")], tgt_lang)


def test_a_model_of_one_direction_takes_no_language(
    small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match="no language tags; leave the option out"):
        Translator(small_model, small_tokenizer).translate(["a"], tgt_lang="de")
