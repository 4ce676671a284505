import dataclasses
import json
import math
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from training import DROPOUT, STUCK, MakeSetup, Recorder, timeless_log, train

from seq2seq.blocks import Text
from seq2seq.checkpoint import load_model
from seq2seq.config import Value, write_toml
from seq2seq.corpus import open_corpus
from seq2seq.distributed import World
from seq2seq.learner import NonFiniteError
from seq2seq.run import Run
from seq2seq.trainer import Interrupt, Trainer
from seq2seq.translator import Translator
from seq2seq.validation import hold_out
from tokenizer.base import Tokenizer

LOSSES = Path(__file__).parents[1] / "data" / "losses.json"


# Signals, limits, checkpoints


def test_a_signal_saves_the_step_it_comes_in(make_setup: MakeSetup, tmp_path: Path) -> None:
    outcome = train(make_setup(tmp_path / "run", {}), Recorder(signal_after=6))
    assert (outcome.step, outcome.signal) == (7, 15)
    assert Run(tmp_path / "run").steps("checkpoints")[-1] == 7


def test_asked_to_save_it_saves_and_goes_on(make_setup: MakeSetup, tmp_path: Path) -> None:
    recorder = Recorder(interrupt=Interrupt(save=True))
    assert train(make_setup(tmp_path / "run", {}), recorder).step == 20
    assert recorder.saves == [1, 5, 10, 15, 20]


def test_a_wish_to_save_that_comes_while_others_are_counted_is_not_lost(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    interrupt = Interrupt()

    class Late(World):
        """A signal comes while the sums are made."""

        n_calls = 0

        def sum_numbers(self, *numbers: float) -> list[float]:
            if len(numbers) == 4:  # what the ranks decide upon
                Late.n_calls += 1
                interrupt.save = interrupt.save or Late.n_calls == 7
            return super().sum_numbers(*numbers)

    recorder = Recorder(interrupt=interrupt)
    train(dataclasses.replace(make_setup(tmp_path / "run", {}), world=Late()), recorder)
    assert recorder.saves == [5, 8, 10, 15, 20]


def test_training_ends_after_the_epochs_asked_for(make_setup: MakeSetup, tmp_path: Path) -> None:
    settings: dict[str, Value] = {"train.max_steps": 1000, "train.max_epochs": 2}
    setup = make_setup(tmp_path / "run", {**settings, "data.batch_tokens": 1024})
    trainer = Trainer(setup, Recorder())
    outcome = trainer.run(Interrupt())
    assert outcome.reason == "max_epochs 2 reached"
    assert timeless_log(Run(tmp_path / "run"))[-1]["step"] == outcome.step
    epochs = [e["epoch"] for e in timeless_log(Run(tmp_path / "run")) if e["kind"] == "step"]
    assert (min(epochs), max(epochs)) == (1, 2)
    examples = setup.corpus.examples(np.arange(len(setup.corpus)))
    n_once = sum(len(side) + 1 for example in examples for side in example.sides())
    assert trainer.progress.n_tokens == 2 * n_once


def test_an_epoch_has_the_pairs_that_the_weights_ask_for(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    settings: dict[str, Value] = {"train.max_steps": 1000, "train.max_epochs": 2}
    setup = make_setup(tmp_path / "run", {**settings, "data.weights": "2"})
    trainer = Trainer(setup, Recorder())
    trainer.run(Interrupt())
    examples = setup.corpus.examples(np.arange(len(setup.corpus)))
    n_once = sum(len(side) + 1 for example in examples for side in example.sides())
    assert trainer.progress.n_tokens == 4 * n_once


def test_training_ends_when_its_time_is_over_and_stays_ended(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    settings: dict[str, Value] = {"train.max_steps": 100_000, "train.max_time": "0.05s"}
    outcome = train(make_setup(tmp_path / "run", settings))
    again = train(make_setup(tmp_path / "run", settings))
    assert outcome.reason == again.reason == "max_time 0.05s reached"
    assert outcome.step == again.step


def test_translations_without_spaces_are_judged_by_their_characters(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    setup, recorder = make_setup(tmp_path / "run", {}), Recorder()
    tgt = [line.replace(" ", "") for line in setup.validation.tgt]
    validation = dataclasses.replace(setup.validation, tgt=tgt)
    setup = dataclasses.replace(setup, validation=validation)
    train(setup, recorder)
    assert [v.tokenize for v in recorder.validations] == ["char", "char"]
    assert any("BLEU counts characters" in message for message in recorder.messages)
    entries = [json.loads(line) for line in setup.run.log.read_text().splitlines()]
    assert [e["tokenize"] for e in entries if e["kind"] == "validation"] == ["char", "char"]


def test_training_ends_when_nothing_gets_better(make_setup: MakeSetup, tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = train(make_setup(tmp_path / "run", STUCK), recorder)
    n_best = recorder.validations[-1].step // 2 - 3
    assert outcome.reason == "no better loss in 3 validations"
    assert outcome.best_step == 2 * n_best


def test_only_the_newest_and_the_best_checkpoints_are_kept(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    settings: dict[str, Value] = {"train.save_every": 2, "train.keep": 2, "train.metric": "loss"}
    recorder = Recorder()
    train(make_setup(run.folder, settings), recorder)
    best = next(v.step for v in reversed(recorder.validations) if v.is_best)
    assert set(run.steps("checkpoints")) == {18, 20, best}
    assert run.steps("state") == [18, 20]
    assert (run.pointer("latest"), run.pointer("best")) == ("00000020", f"{best:08d}")


def test_the_best_checkpoint_is_kept_however_old_it_is(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    still: dict[str, Value] = {"optim.lr": 1e-12, "optim.warmup_steps": 10**9, "train.ema": 0.0}
    often: dict[str, Value] = {"train.validate_every": 2, "train.save_every": 2, "train.keep": 1}
    train(make_setup(run.folder, {**still, **often, "train.metric": "loss"}))
    assert run.steps("checkpoints") == [2, 20]
    assert run.pointer("best") == "00000002"


# Numbers that are none


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    wild: dict[str, Value] = {"optim.lr": 1e20, "train.save_every": 1, "optim.warmup_steps": 0}
    with pytest.raises(NonFiniteError, match=r"step \d+: loss .*learning rate .*; sentence pairs"):
        train(make_setup(run.folder, wild))
    model = load_model(run.checkpoint(run.steps("checkpoints")[-1]))
    assert all(bool(w.isfinite().all()) for w in model.weights.values())


def test_an_overflow_in_fp16_skips_the_update_and_halves_the_scale(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    setup = make_setup(tmp_path / "run", {"train.precision": "fp16", "train.max_steps": 3})
    recorder = Recorder()
    trainer = Trainer(setup, recorder)
    tensors = trainer._learner.tensors()
    tensors["loss_scale"][0] = 2.0**40
    before = tensors["weights"].clone()
    trainer.run(Interrupt())
    assert torch.equal(tensors["weights"], before)
    assert recorder.losses == []  # no update, so no loss that could be taken for the best
    log = timeless_log(Run(tmp_path / "run"))
    scales = [e["scale"] for e in log if e["kind"] == "overflow"]
    assert scales == [2.0**39, 2.0**38, 2.0**37]


def test_in_fp16_a_loss_that_no_scale_makes_finite_stops_the_run(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    long: dict[str, Value] = {"train.max_steps": 100, "train.validate_every": 100}
    setup = make_setup(tmp_path / "run", {"train.precision": "fp16", **long})
    with torch.no_grad():
        setup.model.src_embedding.weight[:] = math.nan
    with pytest.raises(NonFiniteError, match="sentence pairs"):
        Trainer(setup, Recorder()).run(Interrupt())


def test_a_validation_that_is_not_finite_stops_too(make_setup: MakeSetup, tmp_path: Path) -> None:
    wild: dict[str, Value] = {"optim.lr": 1e20, "train.validate_every": 1, "optim.warmup_steps": 0}
    with pytest.raises(NonFiniteError, match="step"):
        train(make_setup(tmp_path / "run", wild))
    assert Run(tmp_path / "run").steps("checkpoints") == []


# What is reported


def test_the_log_holds_every_step_and_validation(make_setup: MakeSetup, tmp_path: Path) -> None:
    recorder = Recorder()
    train(make_setup(tmp_path / "run", {}), recorder)
    log = timeless_log(Run(tmp_path / "run"))
    assert [e["step"] for e in log if e["kind"] == "step"] == list(range(1, 21))
    assert [e["step"] for e in log if e["kind"] == "validation"] == [10, 20]
    losses = [e["loss"] for e in log if e["kind"] == "step"]
    assert losses == pytest.approx(recorder.losses, rel=1e-8)


def test_the_saved_model_scores_as_the_validation_said(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    recorder = Recorder()
    setup = make_setup(tmp_path / "run", {"train.ema": 0.9})
    train(setup, recorder)
    last = recorder.validations[-1]
    translator = Translator.load(setup.run.checkpoint(last.step), "cpu", "fp32")
    pairs = list(zip(setup.validation.src, setup.validation.tgt, strict=True))
    scored = translator.score(pairs)
    n_tokens = sum(len(s.token_log_probs) for s in scored)
    assert -sum(s.log_prob for s in scored) / n_tokens == pytest.approx(last.nll, abs=1e-5)
    assert translator.translate([s for s, _, _ in last.samples], beam_size=1) == [
        hypothesis for _, _, hypothesis in last.samples
    ]


def test_the_loss_falls_below_what_word_frequencies_give(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    settings: dict[str, Value] = {"train.max_steps": 100, "train.validate_every": 100}
    setup = make_setup(
        tmp_path / "run", {**settings, "model.dropout": 0.0, "train.save_every": 100}
    )
    recorder = Recorder()
    train(setup, recorder)
    counts = Counter(i for example in setup.validation.examples for i in example.sides()[1])
    entropy = -sum(n * math.log(n / counts.total()) for n in counts.values()) / counts.total()
    assert recorder.validations[-1].nll < entropy


def test_the_last_update_is_validated_whatever_ends_the_run(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    limits: list[dict[str, Value]] = [{"train.max_steps": 3}, {"train.max_epochs": 1}]
    for i, limit in enumerate(limits):
        recorder = Recorder()
        outcome = train(
            make_setup(tmp_path / str(i), {**limit, "data.batch_tokens": 1024}), recorder
        )
        assert [v.step for v in recorder.validations] == [outcome.step]
        assert Run(tmp_path / str(i)).pointer("best") == f"{outcome.step:08d}"


def test_every_update_is_in_the_log_also_where_validations_fall_between_its_lines(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    settings: dict[str, Value] = {"train.max_steps": 10, "model.dropout": 0.0}
    each, some = Recorder(), Recorder()
    train(make_setup(tmp_path / "each", settings), each)
    settings |= {"train.log_every": 10, "train.validate_every": 3}
    train(make_setup(tmp_path / "some", settings), some)
    assert min(each.losses) < some.losses[0] < max(each.losses)
    assert some.losses[0] == pytest.approx(sum(each.losses) / 10, rel=0.02)


def test_twenty_losses_are_those_of_the_first_release(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    # In float64, where processors agree to many digits; every kind of noise is on.
    noise: dict[str, Value] = {
        **DROPOUT,
        "data.bpe_dropout": 0.1,
        "data.word_dropout": 0.1,
        "train.precision": "fp64",
        "train.ema": 0.9,
        "optim.accumulate": 2,
    }
    recorder = Recorder()
    train(make_setup(tmp_path / "run", noise), recorder)
    expected = json.loads(LOSSES.read_bytes())
    if recorder.losses != pytest.approx(expected, rel=1e-9):
        pytest.fail(f"numerics changed: training gives other losses now: {recorder.losses}")


# Learning


REVERSE: dict[str, Value] = {
    "model.d_model": 64,
    "model.d_ff": 128,
    "model.n_heads": 4,
    "model.n_encoder_layers": 2,
    "model.positions": "rotary",
    "model.dropout": 0.0,
    "data.batch_tokens": 512,
    "data.holdout": 200,
    "optim.lr": 5e-3,
    "optim.warmup_steps": 50,
    "optim.label_smoothing": 0.0,
    "train.ema": 0.99,
    "train.max_steps": 350,
    "train.validate_every": 350,
    "train.save_every": 350,
}


@pytest.mark.slow
def test_a_tiny_model_learns_to_reverse(
    make_setup: MakeSetup, tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    rng = random.Random(1)
    lines = ["".join(rng.choices("0123456789", k=rng.randint(1, 6))) for _ in range(4000)]
    files = tmp_path / "src", tmp_path / "tgt"
    files[0].write_bytes("".join(f"{line}\n" for line in lines).encode())
    files[1].write_bytes("".join(f"{line[::-1]}\n" for line in lines).encode())
    corpus = open_corpus(Text(files[:1], files[1:], small_tokenizer, 100), tmp_path / "data")
    corpus, validation = hold_out(corpus, small_tokenizer, 200, 1)
    setup = make_setup(tmp_path / "run", REVERSE)

    train(dataclasses.replace(setup, corpus=corpus, validation=validation))

    found = Translator.load(setup.run.folder, "cpu", "fp32").translate(validation.src, beam_size=1)
    n_right = sum(a == b for a, b in zip(found, validation.tgt, strict=True))
    assert n_right >= 0.99 * len(found)


# Several processes

RANK = """
import dataclasses, os, sys
from pathlib import Path
import torch
from seq2seq.run import Run
from seq2seq.config import RunConfig, override, read_toml
from seq2seq.blocks import Text
from seq2seq.corpus import open_corpus
from seq2seq.distributed import join_world, leave_world
from seq2seq.model import Transformer
from seq2seq.trainer import Interrupt, Setup, Trainer
from seq2seq import validation as held_out
from seq2seq.validation import hold_out
from tokenizer.folder import load_tokenizer

held_out._TRANSLATED_ROWS = 1  # the first process has more than the second


class Silent:
    def ignore(self, *anything): pass
    started = stepped = validating = validated = saved = warned = ignore


torch.set_num_threads(1)
src, tgt, folder = map(Path, sys.argv[1:])
world = join_world(os.environ, "cpu")
config = override(RunConfig(), read_toml((folder / "train.toml").read_bytes(), ""), "")
tokenizer = load_tokenizer(folder / "tokenizer")
corpus = open_corpus(Text([src], [tgt], tokenizer, 100), folder / "data")
corpus, validation = hold_out(corpus, tokenizer, config.data.holdout, 1)
torch.manual_seed(config.train.seed)
model = Transformer(config.model)
setup = Setup(config, model, tokenizer, corpus, validation, Run(folder), world)
Trainer(setup, Silent()).run(Interrupt())
leave_world(world)
"""


def test_two_processes_train_as_one_that_accumulates(
    make_setup: MakeSetup, tmp_path: Path, parallel: tuple[Path, Path], small_tokenizer: Tokenizer
) -> None:
    exact: dict[str, Value] = {
        "model.dropout": 0.0,
        "train.precision": "fp64",
        "optim.accumulate": 2,
        "train.max_steps": 10,
        "train.metric": "loss",
        "data.holdout": 5,
    }
    alone = make_setup(tmp_path / "alone", exact)
    train(alone)
    together = Run(tmp_path / "together")
    small_tokenizer.save(together.tokenizer)
    together.settings.write_bytes(write_toml(alone.config))
    open_corpus(Text(parallel[:1], parallel[1:], small_tokenizer, 100), together.data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    meeting.update({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *parallel, together.folder],
            env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]

    one, two = (
        safetensors.torch.load((run.state(10) / "state.safetensors").read_bytes())
        for run in (alone.run, together)
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-10)
    one, two = (
        [e for e in timeless_log(run) if e["kind"] == "validation"] for run in (alone.run, together)
    )
    assert [e["nll"] for e in one] == pytest.approx([e["nll"] for e in two], abs=2e-6)
    assert [(e["chrf"], e["samples"]) for e in one] == [(e["chrf"], e["samples"]) for e in two]
