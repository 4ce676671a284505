import random
import unicodedata
from collections.abc import Callable

import pytest

from tokenizer import bpe, spm
from tokenizer.base import Tokenizer

TRAIN: dict[str, Callable[[list[str], int], Tokenizer]] = {
    "tokenizers bpe": bpe.train,
    "sentencepiece bpe": lambda lines, size: spm.train(lines, size, "bpe"),
    "sentencepiece unigram": lambda lines, size: spm.train(lines, size, "unigram"),
}

EN = ["a man in a blue shirt", "two young men", "a dog runs", "the dogs are running", "what a day"]
DE = ["ein Mann im blauen Hemd", "zwei junge Männer", "ein Hund läuft", "die Hunde laufen", "Tag!"]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    rng = random.Random(0)
    sentences = [" ".join(rng.sample([w for s in half for w in s.split()], 8)) for half in (EN, DE)]
    return [*EN, *DE, *sentences, "Say: “</s> <pad> ▁ ␛_ <0x41>” 1234 times.\t\0"] * 4


@pytest.fixture(scope="session", params=TRAIN)
def tokenizer(request: pytest.FixtureRequest, corpus: list[str]) -> Tokenizer:
    return TRAIN[request.param](corpus, 400)


@pytest.fixture(scope="session")
def nasty_texts() -> list[str]:
    return [
        "",
        " ",
        "  ",
        " a",
        "a",
        "a ",
        "  a  b  ",
        "\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
        "\0",
        "a\0b",
        "\x1b[31m",
        "</s> <pad> <unk> <s> <mask> <0x41> ⟨pad⟩ ⟨eos⟩ [PAD] <|endoftext|>",
        "▁",
        "▁▁ ▁a",
        " ▁",
        "␛",
        "␛_ ␛␛ ␛▁ ▁␛ ␛",
        "▅ ⁇  \ufffd",
        "\ufeffbom",
        "½ ﬁ Å Å ẞ e\u0301 é ＡＢ",
        "\u00a0\u3000\u200b\u2009",
        "👩‍👩‍👧‍👦 🇩🇪 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
        "مرحبا \u202eabc\u202c می‌خواهم",
        "नमस्ते दुनिया हिन्दी",
        "한국어 각",
        "这是一个很长的中文句子没有空格" * 5,
        "𝔘𐍈𠜎\U0010ffff\ufdd0\uffff",
        unicodedata.normalize("NFD", "Zürich, Ångström"),
        "ĠĊ⟨",
        "don't l'homme 3.14 1,000,000 ... --- !!!???",
        "x" * 5000,
        '{"a": [1, "\\n"]} <b>&amp;</b>',
    ]
