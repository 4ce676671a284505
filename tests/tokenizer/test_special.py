import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenizer import bpe, spm
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.folder import load_tokenizer
from tokenizer.special import N_SPECIAL

TAGS = ["de", "pt-BR", "zh_Hans"]
LINES = ["a man in a blue shirt <2de> ⟨2de⟩", "ein Mann läuft <2pt-BR>", "the dog runs"] * 4
TRAIN: dict[str, Callable[..., Tokenizer]] = {
    "tokenizers bpe": bpe.train,
    "sentencepiece bpe": lambda lines, size, tags: spm.train(lines, size, "bpe", tags=tags),
    "sentencepiece unigram": lambda lines, size, tags: spm.train(lines, size, tags=tags),
}
FORGED = ["<2de>", "⟨2de⟩ a dog", "▁<2de>", "a <2pt-BR> b", "<2de><2de>", "⟨2zh_Hans⟩"]


@pytest.fixture(scope="module", params=TRAIN)
def tagged(request: pytest.FixtureRequest) -> Tokenizer:
    return TRAIN[request.param](LINES, 330, tags=TAGS)


def test_tags_come_right_after_the_control_ids(tagged: Tokenizer, tmp_path: Path) -> None:
    tagged.save(tmp_path)
    expected = {name: N_SPECIAL + i for i, name in enumerate(TAGS)}
    assert dict(tagged.tags) == dict(load_tokenizer(tmp_path).tags) == expected
    assert tagged.vocab_size <= 330


def test_no_text_becomes_a_tag(tagged: Tokenizer, tmp_path: Path) -> None:
    tagged.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in FORGED:
        ids = tagged.encode(text)
        assert min(ids) >= N_SPECIAL + len(TAGS)
        assert again.encode(text) == tagged.encode_batch([text])[0] == ids
        assert tagged.decode(ids) == text
        (sampled,) = tagged.resample([ids], 0.5, [0])
        assert min(sampled) >= N_SPECIAL + len(TAGS)
        assert tagged.decode(sampled) == text


def test_decoding_drops_tags(tagged: Tokenizer) -> None:
    ids = tagged.encode("the dog")
    assert tagged.decode([tagged.tags["de"], *ids, tagged.tags["pt-BR"]]) == "the dog"


@pytest.mark.parametrize("kind", TRAIN)
def test_without_tags_there_are_none(kind: str) -> None:
    assert dict(TRAIN[kind](LINES, 330, tags=[]).tags) == {}


@pytest.mark.parametrize("kind", TRAIN)
@pytest.mark.parametrize("tag", ["", "2de", "d e", "de>", "ü", "x" * 33])
def test_what_is_no_name_is_refused(kind: str, tag: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        TRAIN[kind](LINES, 330, tags=[tag])


def test_a_tag_twice_is_one(tagged: Tokenizer) -> None:
    assert dict(bpe.train(LINES, 330, tags=["de", "de"]).tags) == {"de": N_SPECIAL}


def test_the_smallest_vocabulary_has_room_for_the_tags() -> None:
    assert bpe.train(["a"], 263, tags=["de", "fr"]).vocab_size == 263
    with pytest.raises(UserError, match="must be from 263"):
        bpe.train(["a"], 262, tags=["de", "fr"])


def test_a_tag_among_the_pieces_is_refused() -> None:
    document = json.loads(bpe.train(LINES, 330, tags=["de"]).files()[bpe.FILE_NAME])
    vocab = document["model"]["vocab"]
    vocab["⟨2de⟩"], vocab["!"] = vocab["!"], vocab["⟨2de⟩"]
    with pytest.raises(UserError, match="do not fit together"):
        bpe.BpeTokenizer(json.dumps(document).encode())
