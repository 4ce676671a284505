import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.app import main
from cli.plain import Notices, PlainTraining
from seq2seq.recipe import prepare
from seq2seq.reports import StepReport
from seq2seq.request import Request
from seq2seq.trainer import Interrupt, Trainer

TINY = {
    "model.d_model": "16",
    "model.d_ff": "32",
    "model.n_heads": "2",
    "model.n_encoder_layers": "1",
    "model.n_decoder_layers": "1",
    "model.dropout": "0.1",
    "data.vocab_size": "300",
    "data.batch_tokens": "256",
    "data.holdout": "5",
    "optim.warmup_steps": "5",
    "train.max_steps": "20",
    "train.validate_every": "10",
    "train.save_every": "10",
    "train.log_every": "5",
    "train.precision": "fp32",
}


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: bytes
    err: str


Tfm = Callable[..., Result]


@pytest.fixture
def tfm(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Tfm:
    """Run the real `main()` here: arguments, and bytes for its standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFM_MODEL", raising=False)

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        path = tmp_path / ".stdin"
        path.write_bytes(stdin)
        before = os.dup(0)
        given = os.open(path, os.O_RDONLY)
        os.dup2(given, 0)
        try:
            code = main([str(argument) for argument in arguments])
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(given)
            path.unlink()
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return run


@pytest.fixture
def entry() -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-c", "import sys; from cli.app import main; sys.exit(main())"]


@pytest.fixture(scope="session")
def model(parallel: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run; not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "model"
    request = Request(run=folder, src=parallel[:1], tgt=parallel[1:], settings=TINY)
    setup = prepare(request, Notices(is_silent=True))
    reporter = PlainTraining(setup.config.train, is_silent=True)
    Trainer(setup, reporter).run(Interrupt())
    return folder


@pytest.fixture
def train_arguments(parallel: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """The arguments of a `tfm train` of two seconds into the folder `run`."""
    settings = [
        argument for name, value in TINY.items() for argument in ("--set", f"{name}={value}")
    ]
    src, tgt = map(str, parallel)
    return ["train", "--src", src, "--tgt", tgt, "-m", str(tmp_path / "run"), *settings]


@pytest.fixture
def step_report() -> StepReport:
    """What a training says at step 50, after 100 seconds."""
    return StepReport(
        step=50,
        epoch=2,
        epochs=1.5,
        loss=4.25,
        nll=4.0,
        lr=1e-3,
        norm=1.5,
        tokens_per_second=12_345.6,
        wait=0.01,
        padding=0.05,
        seconds=100.0,
    )
