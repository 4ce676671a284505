import dataclasses
import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from letters import BEAM, GREEDY, Letters, exact_translator, letters_model, some_lines

from seq2seq.checkpoint import load_model, save_model
from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.hardware import multiplies_int8
from seq2seq.model import Transformer
from seq2seq.segments import split_long
from seq2seq.translation import Translation
from seq2seq.translator import WINDOW, Translator
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.folder import train_tokenizer

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


def test_blank_lines_become_empty_and_none_is_lost(
    small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    translated = Translator(small_model, small_tokenizer).translate(NASTY)
    assert len(translated) == len(NASTY)
    for line, translation in zip(NASTY, translated, strict=True):
        if not line.strip():
            assert translation == ""


def test_a_line_break_is_a_space_to_the_model(
    small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    translator = Translator(small_model, small_tokenizer)
    assert translator.translate(["the\ndog\n"]) == translator.translate(["the dog"])


def test_a_beam_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="beam_size: 0 is out of range"):
        exact_translator().translate(["a"], beam_size=0)
    n = exact_translator().tokenizer.vocab_size
    assert exact_translator().translate([""], beam_size=n) == [""]
    with pytest.raises(UserError, match=f"--beam-size {n + 1}: is more than the {n} pieces"):
        exact_translator().translate(["a"], beam_size=n + 1)


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


# Prefixes


SEARCHES = [GREEDY, SearchConfig(beam_size=4, n_best=4), SearchConfig(sample=True, n_best=3)]


@pytest.mark.parametrize("config", SEARCHES)
def test_every_translation_begins_with_the_prefix_of_its_line(config: SearchConfig) -> None:
    lines = some_lines(12)
    prefixes = ["", "zyx", "q", "aaaaaaaaaaaaaaaaaaaaaa", "-", " v "] * 2
    found = exact_translator().alternatives(lines, config, prefixes=prefixes)
    for prefix, alternatives in zip(prefixes, found, strict=True):
        assert len(alternatives) == config.n_best
        assert all(t.text.startswith(prefix.strip()) for t in alternatives)
    without = exact_translator().alternatives(lines, config)
    for i in (0, 6):
        assert [t.text for t in found[i]] == [t.text for t in without[i]]


def test_a_prefix_longer_than_the_cap_leaves_room_to_go_on() -> None:
    short = SearchConfig(beam_size=1, max_len_factor=0.1, max_len_extra=4)
    translator = exact_translator()
    (text,) = translator.translate(["ab"], short, prefixes=["q" * 50])
    assert text.startswith("q" * 50)
    assert len(text) <= 54


def test_a_blank_line_with_a_prefix_is_the_prefix() -> None:
    assert exact_translator().translate(["", " "], prefixes=["ab", ""]) == ["ab", ""]


def test_the_first_part_of_a_long_line_begins_with_its_prefix() -> None:
    (text,) = exact_translator().translate(["a" * 600], GREEDY, prefixes=["zyx"])
    assert text.startswith("zyx")


def test_prefixes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"prefix of line 2: 300 tokens, more than the 256"):
        exact_translator().translate(["a", "b"], prefixes=["", "c" * 300])
    with pytest.raises(UserError, match="2 lines have 1 prefixes"):
        exact_translator().translate(["a", "b"], prefixes=["c"])


@pytest.mark.parametrize("n", [14, 15])
def test_learned_positions_are_not_exceeded_by_a_prefix(n: int) -> None:
    translator = Translator(letters_model("learned"), Letters())  # type: ignore[arg-type]
    (text,) = translator.translate(["abc"], SearchConfig(min_len=99), prefixes=["q" * n])
    assert text.startswith("q" * n)
    assert len(text) == 15
    with pytest.raises(UserError, match="prefix of line 2: 16 tokens, more than the 15"):
        translator.translate(["abc"], prefixes=["q" * 16])


def test_a_stream_takes_prefixes_as_it_takes_lines() -> None:
    lines, prefixes = some_lines(5), ["a", "b", "c", "d", "e"]
    stream = exact_translator().stream(iter(lines), GREEDY, prefixes=iter(prefixes))
    assert list(stream) == exact_translator().translate(lines, GREEDY, prefixes=prefixes)


# Ensembles


@pytest.mark.parametrize("config", SEARCHES)
def test_a_model_with_itself_translates_as_alone(config: SearchConfig) -> None:
    model, lines = letters_model().double(), some_lines(10)
    twice = Translator(model, Letters(), others=[model])  # type: ignore[arg-type]
    assert twice.translate(lines, config) == exact_translator().translate(lines, config)


def test_an_ensemble_scores_what_it_finds_as_it_found_it() -> None:
    other = letters_model()
    with torch.no_grad():
        other.output.weight.mul_(1.5)
    models = letters_model().double(), other.double()
    both = Translator(models[0], Letters(), others=models[1:])  # type: ignore[arg-type]
    alone = [Translator(model, Letters()) for model in models]  # type: ignore[arg-type]
    for line, (found,) in zip(
        lines := some_lines(10), both.alternatives(lines, GREEDY), strict=True
    ):
        n = len(found.token_log_probs)
        (scored,) = both.score([(line, found.text)])
        assert scored.token_log_probs[:n] == pytest.approx(found.token_log_probs)
        each = [t.score([(line, found.text)])[0].token_log_probs for t in alone]
        mean = [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in zip(*each, strict=True)]
        assert scored.token_log_probs == pytest.approx(mean)


def test_an_ensemble_is_loaded_from_several_folders(model_folder: Path, tmp_path: Path) -> None:
    saved = load_model(model_folder)
    weights = {name: 1.5 * weight for name, weight in saved.weights.items()}
    save_model(tmp_path / "other", saved.config, weights, saved.tokenizer)
    folders = [model_folder, tmp_path / "other"]
    pairs = [("the dog sees a cat", "cat a sees dog the")]
    (both,) = Translator.load(folders, "cpu", "fp64").score(pairs)
    a, b = (
        Translator.load(folder, "cpu", "fp64").score(pairs)[0].token_log_probs for folder in folders
    )
    assert a != pytest.approx(b)
    mean = [math.log((math.exp(x) + math.exp(y)) / 2) for x, y in zip(a, b, strict=True)]
    assert both.token_log_probs == pytest.approx(mean)


# Whatever the batch


def in_parts(lines: list[str], size: int, strict: bool) -> list[Translation]:
    translator = Translator(letters_model(), Letters(), 1 if strict else 4096)  # type: ignore[arg-type]
    parts = (lines[i : i + size] for i in range(0, len(lines), size))
    short = SearchConfig(beam_size=2, max_len_factor=0.4, max_len_extra=2)
    return [best for part in parts for (best,) in translator.alternatives(part, short)]


def test_alone_in_its_batch_no_bit_of_a_translation_depends_on_other_lines() -> None:
    lines = some_lines(60)
    expected = dict(zip(lines, in_parts(lines, 1, strict=True), strict=True))
    for size in (2, 7, 60):
        random.Random(size).shuffle(lines)
        assert in_parts(lines, size, strict=True) == [expected[line] for line in lines]


def test_in_float32_the_batch_decides_between_equal_scores_only() -> None:
    lines = some_lines(60)
    expected = dict(zip(lines, in_parts(lines, 1, strict=False), strict=True))
    n_different = 0
    for size in (2, 7, 60):
        random.Random(size).shuffle(lines)
        for line, found in zip(lines, in_parts(lines, size, strict=False), strict=True):
            assert found.score == pytest.approx(expected[line].score, abs=1e-4)
            n_different += found.text != expected[line].text
    assert n_different <= 1


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
    assert translator.notes.split.first == [4]  # two lines came before


def test_translations_that_were_cut_are_noted() -> None:
    never_ends = SearchConfig(beam_size=1, min_len=1000, max_len_factor=0.1, max_len_extra=1)
    translator = exact_translator()
    translator.translate(["a", "", "b"], never_ends)
    assert translator.notes.unfinished.first == [1, 3]


def test_translations_that_repeat_themselves_are_stopped_and_noted() -> None:
    model = letters_model()
    with torch.no_grad():
        model.output.weight.zero_()  # all letters are as probable: the first one for ever
    translator = Translator(model, Letters())  # type: ignore[arg-type]
    config = SearchConfig(beam_size=1, max_repeats=3, min_len=7)
    found = translator.translate(["abc", "", "a-b-c-a-a-a-a-a-a"], config)
    assert found[0].startswith("---a---")
    assert found[2].startswith("------a")  # as often as the source says a-
    assert translator.notes.looping.first == [1, 3]
    free = SearchConfig(beam_size=1, max_repeats=0, min_len=7)
    assert translator.translate(["abc"], free)[0].startswith("-------")
    assert translator.notes.looping.first == [1, 3]


def test_learned_positions_are_never_exceeded() -> None:
    translator = Translator(letters_model("learned"), Letters())  # type: ignore[arg-type]
    assert translator.longest == 15
    endless = SearchConfig(beam_size=2, min_len=1000)
    assert len(translator.translate(["a" * 100, "b-c"], endless)) == 2
    assert translator.notes.split.first == [1]


# Loading


def test_a_saved_model_translates_as_before(
    model_folder: Path, small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    lines = ["the dog", "a big man sees the cat"]
    loaded = Translator.load(model_folder, "cpu", "fp32")
    assert loaded.translate(lines) == Translator(small_model, small_tokenizer).translate(lines)


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("bf16", 0.05), ("int8", 0.05)])
def test_every_precision_computes_the_same_but_for_rounding(
    precision: str, error: float, model_folder: Path
) -> None:
    if precision == "int8" and not multiplies_int8():
        pytest.skip("no VNNI")
    pair = ("the dog", "der Hund")
    (exact,), (rounded,) = (
        Translator.load(str(model_folder), "cpu", name).score([pair])
        for name in ("fp64", precision)
    )
    assert rounded.log_prob == pytest.approx(exact.log_prob, rel=error)


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
    with pytest.raises(UserError, match=r"the model: .* not finite; try --precision fp32, or "):
        Translator(model, Letters()).translate(["abc"])  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_that_overflows_is_named_with_what_may_help(
    precision: str, model_folder: Path, tmp_path: Path
) -> None:
    saved = load_model(model_folder)
    for name in ("encoder_norm.weight", "decoder_norm.weight"):
        saved.weights[name].fill_(3e38)
    save_model(tmp_path / "wild", saved.config, saved.weights, saved.tokenizer)
    translator = Translator.load(tmp_path / "wild", "cpu", precision)
    advice = "" if precision == "fp32" else "--precision fp32, or "
    message = f"wild: computes numbers that are not finite; try {advice}another checkpoint"
    with pytest.raises(UserError, match=message):
        translator.translate(["a dog"])
    with pytest.raises(UserError, match=message):
        translator.score([("a dog", "a cat")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_best": 6}, "--n-best 6: is more than --beam-size 5"),
        ({"beam_groups": 2}, "--beam-groups 2: do not divide"),
        ({"max_repeats": 1}, "--max-repeats 1: "),
        ({"beam_size": 0}, "--beam-size: 0 is out of range"),
        ({"temperature": 0.0, "sample": True}, "--temperature: 0.0 is out of range"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        exact_translator().translate(["abc"], SearchConfig(**settings))  # type: ignore[arg-type]


def test_what_is_no_list_of_lines_or_models_is_refused() -> None:
    with pytest.raises(UserError, match="put it into a list"):
        exact_translator().translate("abc")
    with pytest.raises(UserError, match="more prefixes than lines"):
        exact_translator().translate(["abc"], prefixes=["", "a"])
    with pytest.raises(UserError, match="no model to load"):
        Translator.load([])


def test_the_parts_of_a_line_draw_numbers_of_their_own(
    small_model: Transformer, small_tokenizer: Tokenizer
) -> None:
    config = SearchConfig(sample=True, max_repeats=0)
    translator = Translator(small_model, small_tokenizer)
    translator.longest = len(small_tokenizer.encode("the dog runs."))
    ((drawn,),) = translator.alternatives(["the dog runs. the dog runs."], config)
    assert translator.notes.split.first == [1]
    ((alone,),) = Translator(small_model, small_tokenizer).alternatives(["the dog runs."], config)
    n = len(alone.ids)
    assert drawn.ids[:n] == alone.ids != drawn.ids[n:]
    several = translator.alternatives(
        ["the dog runs. the dog runs."], dataclasses.replace(config, n_best=3)
    )
    draws = {
        part for h in several[0] for part in (h.ids[: len(h.ids) // 2], h.ids[len(h.ids) // 2 :])
    }
    assert len(draws) == 6


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


def test_as_many_languages_as_lines_are_needed(tagged: Translator) -> None:
    with pytest.raises(UserError, match="2 lines have 1 languages; give one for each"):
        tagged.alternatives(["a", "b"], GREEDY, ["de"])
    with pytest.raises(UserError, match="put it into a list"):
        tagged.alternatives("a", GREEDY, ["de"])


def test_a_translation_holds_no_tag(tagged: Translator) -> None:
    hot = SearchConfig(sample=True, temperature=9.0, n_best=20, max_repeats=0)
    drawn = tagged.alternatives(["the dog runs"], hot, ["de"])[0]
    assert not {i for t in drawn for i in t.ids} & set(tagged.tokenizer.tags.values())


def test_a_tag_that_is_typed_is_text(tagged: Translator) -> None:
    config = dataclasses.replace(GREEDY, max_len_extra=1)
    typed, meant = (
        tagged.alternatives([line], config, ["de"])[0][0] for line in ("<2fr> a cat", "a cat")
    )
    assert typed.log_prob != meant.log_prob


def test_parts_of_a_long_line_all_have_the_tag(tagged: Translator) -> None:
    assert tagged.longest == 255
    line = "the dog runs. " * 150
    parts = split_long(line.strip(), tagged.tokenizer, tagged.longest)
    texts = [tagged.tokenizer.decode(ids) for ids in parts]
    for name in ("de", "fr"):
        ((whole,),) = tagged.alternatives([line], GREEDY, [name])
        alone = tagged.alternatives(texts, GREEDY, [name] * len(texts))
        assert whole.log_prob == pytest.approx(sum(best.log_prob for best, *_ in alone))


@pytest.mark.parametrize("n", [0, -5])
def test_a_budget_of_no_tokens_is_refused(tagged: Translator, n: int) -> None:
    with pytest.raises(UserError, match=f"batch_tokens = {n}: must be at least 1"):
        Translator(tagged.model, tagged.tokenizer, batch_tokens=n)


def test_a_model_without_a_place_for_a_word_is_refused_by_name(
    tagged: Translator, tmp_path: Path
) -> None:
    for n in (3, 2):
        config = dataclasses.replace(tagged.model.config, positions="learned", max_positions=n)
        weights = dict(Transformer(config).named_parameters())
        save_model(tmp_path / str(n), config, weights, tagged.tokenizer)
    with pytest.raises(UserError, match=r"2: has no place for a word, .*max_positions = 2; "):
        Translator.load(tmp_path / "2", "cpu")
    translator = Translator.load(tmp_path / "3", "cpu")
    assert len(translator.translate(["the dog runs"], tgt_lang="de")) == 1


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
