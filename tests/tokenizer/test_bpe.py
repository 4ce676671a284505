import json
import time
from typing import Any

import pytest
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from tokenizer.bpe import BpeTokenizer, train
from tokenizer.errors import UserError

FILE = "tokenizer.json"


@pytest.fixture(scope="module")
def trained(corpus: list[str]) -> BpeTokenizer:
    return train(corpus, 350)


def document_of(tokenizer: BpeTokenizer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tokenizer.files()[FILE])
    return document


def test_training_repeats_byte_for_byte(corpus: list[str], trained: BpeTokenizer) -> None:
    assert train(iter(corpus), 350).files() == trained.files()


def test_frequent_words_become_pieces() -> None:
    tokenizer = train(["the man and the dog"] * 3, 400)
    assert tokenizer.pieces("the dog and the man") == ["▁the", "▁dog", "▁and", "▁the", "▁man"]


def test_small_text_gives_a_small_vocabulary() -> None:
    assert train(["a"], 300).vocab_size == 261
    assert train(["dog dog"], 300).vocab_size == 261 + 3  # " d", "og", " dog"


def test_vocabulary_has_the_size_asked_for(trained: BpeTokenizer) -> None:
    assert trained.vocab_size == 350


@pytest.mark.parametrize("size", [-1, 0, 260, 1_000_001])
def test_impossible_size_states_the_limits(size: int) -> None:
    with pytest.raises(UserError, match=f"vocab size {size}: must be from 261 to 1000000"):
        train(["a"], size)


@pytest.mark.parametrize("lines", [[], ["", "  ", "\t\u2028"]])
def test_text_is_needed(lines: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        train(lines, 300)


def test_lone_surrogate_in_training_is_named() -> None:
    with pytest.raises(UserError, match="surrogate"):
        train(["fine", "\ud800"], 300)


def test_pieces_stay_within_words_and_bounds() -> None:
    tokenizer = train(["x" * 100 + " 123 (no). ..."] * 50, 600)
    pieces = tokenizer.pieces("x" * 100)
    assert max(map(len, pieces)) <= 32
    assert tokenizer.pieces("123 (no).") == ["▁1", "2", "3", "▁(", "no", ")."]


@pytest.mark.parametrize("character", ["x", "你", "-", " "])
def test_long_words_are_learnt_from_in_little_time(character: str) -> None:
    start = time.monotonic()
    trained = train(["a" + character * 50_000 + "b"], 400)
    assert time.monotonic() - start < 1.5
    assert len(trained.encode(character * 50_000)) <= 50_000 * len(character.encode()) // 8


def test_marks_and_joiners_do_not_cut_a_word() -> None:
    for word in ("हिन्दी", "می‌خواهم", "e\u0301te\u0301"):
        assert train([word] * 3, 400).pieces(word) == ["▁" + word] or "\u200c" in word


def test_bytes_that_are_not_text_are_shown_as_bytes() -> None:
    tokenizer = train(["a"], 261)
    assert tokenizer.pieces("ä\t") == ["▁", "<0xC3>", "<0xA4>", "<0x09>"]


def test_file_means_the_same_to_the_library_itself(
    trained: BpeTokenizer, nasty_texts: list[str]
) -> None:
    library = tokenizers.Tokenizer.from_str(trained.files()[FILE].decode())
    assert library.get_vocab_size() == trained.vocab_size
    for text in nasty_texts:
        ids = library.encode(text).ids
        assert ids == trained.encode(text)
        assert library.decode(ids, skip_special_tokens=False) == text


def test_control_names_cannot_be_spelt_in_bytes(trained: BpeTokenizer) -> None:
    vocab = document_of(trained)["model"]["vocab"]
    names = sorted(vocab, key=vocab.__getitem__)[:5]
    assert all(set(name) - set(ByteLevel.alphabet()) for name in names)
    assert document_of(trained)["added_tokens"] == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\x80\x04\x95",
        b"[" * 100_000,
        b'{"model": {"vocab": NaN, "merges": []}}',
        b'{"model": {"vocab": {}, "merges": []}, "model": {}}',
        b"1" * 5000,
        b'{"model": {"vocab": {}, "merges": []}}',
    ],
)
def test_file_that_is_no_tokenizer_is_named(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^folder/tokenizer\.json: "):
        BpeTokenizer(data, "folder/tokenizer.json")


def without_a_byte(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["⟨⟩"] = document["model"]["vocab"].pop("!")


def with_ids_swapped(document: dict[str, Any]) -> None:
    vocab = document["model"]["vocab"]
    vocab["⟨pad⟩"], vocab["a"] = vocab["a"], vocab["⟨pad⟩"]


def with_an_id_twice(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["a"] = 7


def with_a_gap(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["Ġxyz"] = 10_000


def with_a_fraction(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["a"] += 0.5


def with_a_merge_to_nowhere(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(["q", "q"])


def with_a_merge_of_controls(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(["⟨pad⟩", "a"])


def with_a_merge_of_three(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(["a", "b", "c"])


def with_an_added_token(document: dict[str, Any]) -> None:
    document["added_tokens"].append({"id": 3, "content": "</s>", "special": True})


def with_another_model(document: dict[str, Any]) -> None:
    document["model"]["type"] = "WordPiece"


def with_another_pattern(document: dict[str, Any]) -> None:
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$"


def with_library_dropout(document: dict[str, Any]) -> None:
    document["model"]["dropout"] = 0.1


def with_truncation(document: dict[str, Any]) -> None:
    document["truncation"] = {"max_length": 3}


@pytest.mark.parametrize(
    "spoil",
    [
        without_a_byte,
        with_ids_swapped,
        with_an_id_twice,
        with_a_gap,
        with_a_fraction,
        with_a_merge_to_nowhere,
        with_a_merge_of_controls,
        with_a_merge_of_three,
        with_an_added_token,
        with_another_model,
        with_another_pattern,
        with_library_dropout,
        with_truncation,
    ],
)
def test_spoilt_file_is_refused(spoil: Any, trained: BpeTokenizer) -> None:
    document = document_of(trained)
    spoil(document)
    with pytest.raises(UserError, match=r"^tokenizer\.json: "):
        BpeTokenizer(json.dumps(document).encode())
