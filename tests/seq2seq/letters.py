"""A translator of single letters, with random weights, and lines for it: what its tests share."""

import random
from typing import ClassVar

import torch

from seq2seq.config import ModelConfig, SearchConfig
from seq2seq.model import Transformer
from seq2seq.translator import Translator

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

    def vocabulary(self) -> list[bytes]:
        return [b""] * 5 + [c.encode() for c in ALPHABET]

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
