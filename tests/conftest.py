"""What all tests share: quiet threads, a small parallel text, and a tokenizer for it."""

import os

# Before torch is imported: idle threads that spin would slow other processes down a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import random
import re
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from tokenizer.base import Tokenizer
from tokenizer.folder import train_tokenizer

torch.set_num_threads(1)
# On a busy machine an example may take any time.
hypothesis.settings.register_profile("tfm", deadline=None)
hypothesis.settings.load_profile("tfm")
# Under nohup, or in the background of a shell, signals are ignored that tests send to processes.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Hide a GPU from tests that do not ask for one: they are of the CPU, and so are their numbers."""
    if not re.search(r"(?<!not )\bgpu\b", " ".join(config.option.markexpr.split())):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


WORDS = ["a", "the", "man", "dog", "cat", "runs", "sleeps", "sees", "big", "in", "Straße", "你好"]


@pytest.fixture(scope="session")
def pairs() -> list[tuple[str, str]]:
    """200 sentences of one to eight words, each with the same words backwards."""
    rng = random.Random(0)
    sentences = [rng.choices(WORDS, k=rng.randint(1, 8)) for _ in range(200)]
    return [(" ".join(words), " ".join(reversed(words))) for words in sentences]


@pytest.fixture(scope="session")
def parallel(
    pairs: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The pairs as two text files; not to be changed."""
    folder = tmp_path_factory.mktemp("parallel")
    src, tgt = folder / "train.src", folder / "train.tgt"
    src.write_bytes("".join(f"{s}\n" for s, _ in pairs).encode())
    tgt.write_bytes("".join(f"{t}\n" for _, t in pairs).encode())
    return src, tgt


@pytest.fixture(scope="session")
def small_tokenizer(parallel: tuple[Path, Path]) -> Tokenizer:
    """Byte-level BPE of some 300 pieces, trained on the pairs."""
    return train_tokenizer(parallel, vocab_size=300)
