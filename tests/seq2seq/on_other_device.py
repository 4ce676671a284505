"""What holds on any device, tried on one that is not the CPU; `test_devices.py` runs it."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from conftest import TINY
from other_device import DEVICE, OtherDevice, register
from torch.nn import functional as F
from training import MakeSetup, Recorder, train

from cli.app import main
from seq2seq.config import SearchConfig, Value
from seq2seq.hardware import DTYPES
from seq2seq.model import Transformer
from seq2seq.trainer import Setup
from seq2seq.translator import Translator
from tokenizer.base import Tokenizer

SHORT: dict[str, Value] = {"data.holdout": 2, "train.max_steps": 3, "train.validate_every": 20}
PLAIN: dict[str, Value] = {**SHORT, "model.dropout": 0.0}
SEARCHES = {
    "greedy": SearchConfig(beam_size=1),
    "beam": SearchConfig(beam_size=4, n_best=4),
    "groups": SearchConfig(beam_size=4, beam_groups=2, n_best=3),
    "sampling": SearchConfig(sample=True, n_best=2),
    "some sampling": SearchConfig(sample=True, top_k=9, top_p=0.5),
    "limits": SearchConfig(beam_size=3, min_len=3, no_repeat_ngram=2, max_repeats=2),
}


# What a GPU computes in any order only, and refuses where it must be a fixed one
# (documentation of `torch.use_deterministic_algorithms`), as far as it has to do with a model of text.
UNORDERED = {
    f"aten::{name}"
    for name in ("nll_loss_forward", "nll_loss2d_forward", "put_", "bincount", "histc", "kthvalue")
} | {"aten::median", "aten::_ctc_loss", "aten::scatter_reduce"}


def used_unordered() -> set[tuple[str, torch.dtype]]:
    """What was computed on the device since it was forgotten, and cannot be in a fixed order."""
    return {
        (name, dtype)
        for name, dtype in OtherDevice.used
        if name in UNORDERED or ("cumsum" in name and dtype.is_floating_point)
    }


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    register()


@pytest.fixture
def _other(_registered: None) -> Iterator[None]:
    with OtherDevice():
        yield


def moved(model: Transformer) -> Transformer:
    with torch.device(DEVICE):  # `to` would make one weight that is tied into several
        twin = Transformer(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.to(model.output.weight.dtype).train(model.training)


def on_other(setup: Setup) -> Setup:
    return dataclasses.replace(setup, model=moved(setup.model))


@pytest.mark.usefixtures("_other")
def test_devices_are_not_mixed() -> None:
    x = torch.ones(3, device=DEVICE)
    assert (x.device.type, (x @ x).tolist(), x.to("cpu").device.type) == ("other", 3.0, "cpu")
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(3)


@pytest.mark.usefixtures("_other")
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 1e-5),
        ({"optim.accumulate": 2, "train.ema": 0.9, "optim.r_drop": 1.0}, 1e-5),
        ({"model.positions": "rotary", "model.norm_type": "rms"}, 1e-5),
        ({"model.positions": "learned", "model.tie_embeddings": "none"}, 1e-5),
        ({"train.precision": "bf16"}, 0.1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_training_is_that_of_the_cpu(
    make_setup: MakeSetup, tmp_path: Path, settings: Mapping[str, Value], tolerance: float
) -> None:
    here, there = Recorder(), Recorder()
    train(make_setup(tmp_path / "cpu", {**PLAIN, **settings}), here)
    train(
        on_other(make_setup(tmp_path / "other", {**PLAIN, **settings, "train.max_steps": 2})), there
    )
    train(on_other(make_setup(tmp_path / "other", {**PLAIN, **settings})), there)  # goes on
    assert len(there.losses) == 3
    assert there.losses == pytest.approx(here.losses, abs=tolerance)
    assert there.validations[-1].nll == pytest.approx(here.validations[-1].nll, abs=tolerance)


@pytest.mark.usefixtures("_other")
def test_training_in_fp16_with_all_kinds_of_dropout(make_setup: MakeSetup, tmp_path: Path) -> None:
    kinds = ("dropout", "attention_dropout", "activation_dropout")
    settings: dict[str, Value] = {f"model.{kind}": 0.1 for kind in kinds}
    settings |= {**SHORT, "train.precision": "fp16", "train.max_steps": 14}
    recorder = Recorder()
    train(on_other(make_setup(tmp_path / "run", settings)), recorder)
    assert recorder.losses[-1] < recorder.losses[0]


@pytest.mark.usefixtures("_other")
def test_no_operation_of_training_needs_an_order_that_a_gpu_has_not(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    OtherDevice.used.clear()
    train(on_other(make_setup(tmp_path / "run", {**SHORT, "optim.r_drop": 1.0})))
    assert ("aten::index_add_", torch.float32) in OtherDevice.used  # has one if it is asked for
    assert not used_unordered()
    logits = torch.randn(3, 5, device=DEVICE)
    F.cross_entropy(logits, torch.zeros(3, dtype=torch.long, device=DEVICE))
    logits.cumsum(0)
    assert {name for name, _ in used_unordered()} == {"aten::nll_loss_forward", "aten::cumsum"}


@pytest.mark.usefixtures("_other")
@pytest.mark.parametrize(
    ("precision", "name"), [("bf16", "beam"), *(("fp32", name) for name in SEARCHES)]
)
def test_translating(
    small_model: Transformer,
    small_tokenizer: Tokenizer,
    pairs: list[tuple[str, str]],
    precision: str,
    name: str,
) -> None:
    search = SEARCHES[name]
    lines = ["", *sorted((src for src, _ in pairs[:9]), key=len)[:3]]
    model = copy.deepcopy(small_model).to(DTYPES[precision])
    here = Translator(model, small_tokenizer).alternatives(lines, search)
    there = Translator(moved(model), small_tokenizer).alternatives(lines, search)
    assert [len(some) for some in there] == [len(some) for some in here]
    if precision == "fp32":
        assert [[t.text for t in some] for some in there] == [[t.text for t in s] for s in here]


@pytest.mark.usefixtures("_other")
def test_an_ensemble_scores_as_on_the_cpu(
    small_model: Transformer, small_tokenizer: Tokenizer, pairs: list[tuple[str, str]]
) -> None:
    models = [moved(small_model) for _ in range(2)]
    there = Translator(models[0], small_tokenizer, others=models[1:]).score(pairs[:3])
    here = Translator(small_model, small_tokenizer).score(pairs[:3])
    assert [t.log_prob for t in there] == pytest.approx([t.log_prob for t in here], abs=1e-4)


@pytest.mark.usefixtures("_other")
def test_the_commands_compute_there(
    parallel: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr("seq2seq.hardware.choose_device", lambda *_: torch.device(DEVICE))
    monkeypatch.setattr("seq2seq.translator.choose_device", lambda *_: torch.device(DEVICE))
    # `to` makes one weight that is tied into several on this device, so none is.
    settings = {**TINY, **SHORT, "data.vocab_size": 300, "model.tie_embeddings": "none"}
    options = [word for item in settings.items() for word in ("--set", "{}={}".format(*item))]
    files = ["--src", str(parallel[0]), "--tgt", str(parallel[1])]
    run = ["-m", str(tmp_path / "run"), "--threads", "1"]
    OtherDevice.used.clear()
    assert main(["train", *files, *run, *options]) == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert "aten::_fused_adamw_" in {name for name, _ in OtherDevice.used}
    torch.use_deterministic_algorithms(False)
    OtherDevice.used.clear()
    (tmp_path / "new").write_bytes(b"a dog\n")
    assert main(["translate", str(tmp_path / "new"), *run]) == 0
    assert capfdbinary.readouterr().out.count(b"\n") == 1
    assert OtherDevice.used
