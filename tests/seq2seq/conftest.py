from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from seq2seq.blocks import Text
from seq2seq.checkpoint import save_model
from seq2seq.config import ModelConfig, RunConfig, Value, override
from seq2seq.corpus import Corpus, open_corpus
from seq2seq.model import Transformer
from seq2seq.request import Request
from seq2seq.run import Run
from seq2seq.trainer import Setup
from seq2seq.validation import hold_out
from tokenizer.base import Tokenizer

TINY_MODEL = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
TINY: dict[str, Value] = {
    **{f"model.{name}": size for name, size in TINY_MODEL.items()},
    "data.batch_tokens": 256,
    "data.holdout": 8,
    "optim.lr": 0.01,
    "optim.warmup_steps": 5,
    "train.max_steps": 20,
    "train.validate_every": 10,
    "train.save_every": 5,
    "train.log_every": 1,
    "train.precision": "fp32",
}
MakeSetup = Callable[[Path, Mapping[str, Value]], Setup]
MakeRequest = Callable[[Path], Request]


@pytest.fixture(scope="session")
def small_model(small_tokenizer: Tokenizer) -> Transformer:
    """A tiny untrained model for the small tokenizer, in evaluation mode; not to be changed."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=small_tokenizer.vocab_size, **TINY_MODEL)
    return Transformer(config).eval()


@pytest.fixture
def model_folder(tmp_path: Path, small_model: Transformer, small_tokenizer: Tokenizer) -> Path:
    """The tiny model, saved."""
    weights = dict(small_model.named_parameters())
    save_model(tmp_path / "saved", small_model.config, weights, small_tokenizer)
    return tmp_path / "saved"


@pytest.fixture(scope="session")
def small_corpus(
    parallel: tuple[Path, Path],
    small_tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Corpus:
    """The pairs as an id store."""
    folder = tmp_path_factory.mktemp("corpus") / "data"
    return open_corpus(Text(parallel[:1], parallel[1:], small_tokenizer, 100), folder)


@pytest.fixture
def make_setup(small_corpus: Corpus, small_tokenizer: Tokenizer) -> MakeSetup:
    """Make a tiny training in a folder, with some settings changed; the model is new each time."""

    def make(folder: Path, settings: Mapping[str, Value]) -> Setup:
        config = override(RunConfig(), {**TINY, **settings}, "test")
        config = override(config, {"model.vocab_size": small_tokenizer.vocab_size}, "test")
        corpus, validation = hold_out(small_corpus, small_tokenizer, config.data.holdout, 1)
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.train.seed)
        model = Transformer(config.model)
        return Setup(config, model, small_tokenizer, corpus, validation, Run(folder))

    return make


@pytest.fixture
def request_for(parallel: tuple[Path, Path], small_tokenizer: Tokenizer) -> MakeRequest:
    """Make a request to train a tiny model in a folder that has the small tokenizer already."""

    def make(folder: Path) -> Request:
        small_tokenizer.save(folder / "tokenizer")
        settings = {
            **{f"model.{name}": str(size) for name, size in TINY_MODEL.items()},
            "data.vocab_size": "300",
            "train.precision": "fp32",
            "train.max_steps": "2",
        }
        return Request(run=folder, src=parallel[:1], tgt=parallel[1:], settings=settings)

    return make
