import io
import random
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import spm
from tokenizer.errors import UserError
from tokenizer.spm import SentencePieceTokenizer, train

FILE = "sentencepiece.model"
SETTINGS: dict[str, Any] = {
    "vocab_size": 320,
    "hard_vocab_limit": False,
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": 2,
    "eos_id": 3,
    "control_symbols": ["<mask>"],
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "minloglevel": 2,
}


def model_of(lines: list[str], settings: dict[str, Any]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **settings
    )
    return model.getvalue()


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_training_repeats_byte_for_byte(algorithm: Any, corpus: list[str]) -> None:
    first = train(corpus, 400, algorithm)
    assert train(iter(corpus), 400, algorithm).files() == first.files()


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_small_text_gives_a_small_vocabulary(algorithm: Any) -> None:
    assert 261 < train(["a b", "ab"], 5000, algorithm).vocab_size < 300


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_size_too_small_for_the_characters_states_the_minimum(
    algorithm: Any, corpus: list[str]
) -> None:
    with pytest.raises(UserError, match="needs at least") as error:
        train(corpus, 270, algorithm)
    minimum = int(str(error.value).rpartition(" ")[2])
    assert train(corpus, minimum, algorithm).vocab_size <= minimum


@pytest.mark.parametrize("size", [0, 260, 1_000_001])
def test_impossible_size_states_the_limits(size: int) -> None:
    with pytest.raises(UserError, match=f"vocab size {size}: must be from 261 to 1000000"):
        train(["a"], size)


@pytest.mark.parametrize("lines", [[], ["", "  "], ["\t"]])
def test_text_is_needed(lines: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        train(lines, 300)


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_a_long_line_teaches_the_words_that_are_in_it(algorithm: Any, corpus: list[str]) -> None:
    rng = random.Random(0)
    words = [rng.choice(" ".join(corpus).split()) + rng.choice(",.") for _ in range(20_000)]
    line = " ".join(words)
    assert len(line) > 1 << 16
    parts = [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]
    learnt, wanted = train([line], 310, algorithm), train(parts, 310, algorithm)
    assert set(learnt.vocabulary()) == set(wanted.vocabulary())


@pytest.mark.parametrize("character", ["a", "ä", "你", "🐕"])
def test_a_long_line_without_spaces_is_cut_between_characters(character: str) -> None:
    for n in (1 << 16, (1 << 16) + 1, 3 << 16):
        pieces = train([" " + character * n], 300, "bpe").vocabulary()
        assert any(len(piece) > 8 for piece in pieces)
        assert all(set(piece.decode()) <= {" ", character} for piece in pieces if len(piece) > 1)


def test_only_a_line_with_a_long_word_is_cut_short() -> None:
    short, long = "word " * 10_000, "a dog " + "x" * 10_000
    assert list(spm._cut(short)) == [short]
    assert [len(part) for part in spm._cut(long)] == [5, 4096, 4096, 1808]


def test_what_the_library_cannot_learn_from_is_an_error_with_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("INTERNAL: x.cc(1)\n[!sentences_.empty()]")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", fail)
    with pytest.raises(UserError, match=r"^a\.en: .*learn.*; give more text, or use --") as error:
        train(["a"], 300, name="a.en")
    assert "\n" not in str(error.value)


def test_error_in_the_text_reaches_the_caller() -> None:
    with pytest.raises(UserError, match="surrogate"):
        train(["fine", "\ud800"], 300)


def test_training_is_silent(capfd: pytest.CaptureFixture[str], corpus: list[str]) -> None:
    train(corpus, 400)
    assert capfd.readouterr() == ("", "")


def test_model_trained_elsewhere_is_welcome(corpus: list[str]) -> None:
    tokenizer = SentencePieceTokenizer(model_of(corpus, SETTINGS))
    assert tokenizer.decode(tokenizer.encode("  a ▁ dog ")) == "  a ▁ dog "


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2}, "pad_id=0"),
        ({"control_symbols": []}, "control_symbols=<mask>"),
        ({"byte_fallback": False, "vocab_size": 80}, "byte_fallback=true"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization_rule_name=identity"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces=false"),
    ],
)
def test_model_that_loses_text_is_refused(
    change: dict[str, Any], named: str, corpus: list[str]
) -> None:
    data = model_of(corpus, SETTINGS | change)
    with pytest.raises(UserError, match=rf"^my\.model: .*{named}"):
        SentencePieceTokenizer(data, "my.model")


def test_damaged_model_is_named(corpus: list[str]) -> None:
    data = train(corpus, 400).files()[FILE]
    for bad in (b"", b"garbage", data[:1000], data[:-10], data + b"x", b"{}"):
        with pytest.raises(UserError, match=r"^my\.model: "):
            SentencePieceTokenizer(bad, "my.model")


def test_file_means_the_same_to_the_library_itself(corpus: list[str]) -> None:
    tokenizer = train(corpus, 400)
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.files()[FILE])
    for text in ("a dog", "  two  ", "</s>", "ä🐕\n"):
        assert library.encode(text) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def plain() -> SentencePieceTokenizer:
    return train(["a b _ ▁ ␛ c"] * 3, 300)


@given(text=st.text(st.sampled_from("▁␛_ a")))
def test_escaped_characters_come_back(text: str, plain: SentencePieceTokenizer) -> None:
    assert plain.decode(plain.encode(text)) == text
