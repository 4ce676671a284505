import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from seq2seq.checkpoint import Run, load_model
from seq2seq.config import Value, write_toml
from seq2seq.corpus import open_corpus
from seq2seq.reports import Cooldown, Progress, StepReport, ValidationReport
from seq2seq.storage import manifest
from seq2seq.trainer import Interrupt, NonFiniteError, Outcome, Setup, Trainer
from seq2seq.translator import Translator
from seq2seq.validation import hold_out
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.special import EOS

MakeSetup = Callable[[Path, Mapping[str, Value]], Setup]
DROPOUT: dict[str, Value] = {
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.activation_dropout": 0.1,
}
VARIANTS: dict[str, dict[str, Value]] = {
    "plain": {"model.dropout": 0.0},
    "dropout": DROPOUT,
    "ema": {"train.ema": 0.9},
    "bpe_dropout": {"data.bpe_dropout": 0.3},
    "accumulation": {"optim.accumulate": 3},
    "several epochs": {"data.batch_tokens": 1024},
    "everything": {
        **DROPOUT,
        "train.ema": 0.9,
        "data.bpe_dropout": 0.1,
        "optim.accumulate": 2,
        "optim.weight_decay": 0.01,
        "train.metric": "loss",
    },
    "bf16": {"train.precision": "bf16"},
    "fp16": {"train.precision": "fp16"},
    "r_drop": {**DROPOUT, "optim.r_drop": 5.0},
    "word_dropout": {"data.word_dropout": 0.2},
}
LOSSES = Path(__file__).parents[1] / "data" / "losses.json"
TIMES = {"seconds", "tokens_per_second", "wait"}


class Killed(Exception):
    """Stands for a process that ended without a word."""


@dataclasses.dataclass
class Recorder:
    """A reporter that remembers, and may kill the training or send it a signal after a step."""

    kill_at: int = 0
    signal_after: int = -1
    losses: list[float] = dataclasses.field(default_factory=list)
    validations: list[ValidationReport] = dataclasses.field(default_factory=list)
    saves: list[int] = dataclasses.field(default_factory=list)
    messages: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    interrupt: Interrupt = dataclasses.field(default_factory=Interrupt)

    def started(self, progress: Progress, seconds: float) -> None:
        assert seconds >= 0
        self.interrupt.stop = 15 if progress.step == self.signal_after else 0

    def stepped(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        self.interrupt.stop = 15 if report.step == self.signal_after else 0
        if report.step == self.kill_at:
            raise Killed

    def validating(self, done: int, total: int) -> None:
        assert done <= total

    def validated(self, report: ValidationReport) -> None:
        self.validations.append(report)

    def saved(self, step: int) -> None:
        self.saves.append(step)

    def said(self, message: str) -> None:
        self.messages.append(message)

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def train(setup: Setup, recorder: Recorder | None = None) -> Outcome:
    recorder = recorder or Recorder()
    return Trainer(setup, recorder).run(recorder.interrupt)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def timeless_log(run: Run) -> list[dict[str, object]]:
    entries = [json.loads(line) for line in run.log.read_bytes().split(b"\n")[:-1]]
    return [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]


# Resuming


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    variant: str, make_setup: MakeSetup, tmp_path: Path
) -> None:
    settings = VARIANTS[variant]
    whole, stopped, killed = (Run(tmp_path / name) for name in ("whole", "stopped", "killed"))
    train(make_setup(whole.folder, settings))

    train(make_setup(stopped.folder, {**settings, "train.max_steps": 10}))
    train(make_setup(stopped.folder, settings))
    with pytest.raises(Killed):
        train(make_setup(killed.folder, settings), Recorder(kill_at=7))
    assert killed.steps("state") == [5]
    train(make_setup(killed.folder, settings))

    expected = digests(whole.checkpoint(20))
    assert {"config.json", "manifest.json", "model.safetensors"} < expected.keys()
    for run in (stopped, killed):
        assert digests(run.checkpoint(20)) == expected
        assert digests(run.state(20)) == digests(whole.state(20))
        assert timeless_log(run) == timeless_log(whole)
        assert (run.folder / "best").read_bytes() == (whole.folder / "best").read_bytes()


@pytest.mark.parametrize("step", range(1, 7))
def test_a_run_can_stop_anywhere_in_an_epoch(
    step: int, make_setup: MakeSetup, tmp_path: Path
) -> None:
    settings: dict[str, Value] = {"data.batch_tokens": 512, "train.max_steps": 8}
    recorder = Recorder()
    train(make_setup(tmp_path / "whole", settings), recorder)

    first, second = Recorder(signal_after=step - 1), Recorder()
    outcome = train(make_setup(tmp_path / "cut", settings), first)
    train(make_setup(tmp_path / "cut", settings), second)

    assert (outcome.step, outcome.signal) == (step, 15)
    assert first.losses + second.losses == recorder.losses
    assert digests(tmp_path / "cut/checkpoints/00000008") == digests(
        tmp_path / "whole/checkpoints/00000008"
    )


def test_a_finished_run_that_is_started_again_changes_no_byte(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    train(make_setup(tmp_path / "run", {}))
    before = digests(tmp_path / "run")
    outcome = train(make_setup(tmp_path / "run", {}))
    assert digests(tmp_path / "run") == before
    assert (outcome.step, outcome.reason) == (20, "max_steps 20 reached")


def test_the_same_seed_gives_the_same_files_and_another_seed_others(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(make_setup(tmp_path / name, {"train.seed": seed, "train.max_steps": 5}))
    a, b, c = (digests(tmp_path / name / "checkpoints") for name in "abc")
    assert a == b != c


def test_a_state_of_another_corpus_is_refused(make_setup: MakeSetup, tmp_path: Path) -> None:
    train(make_setup(tmp_path / "run", {"train.max_steps": 5}))
    setup = make_setup(tmp_path / "run", {})
    other = dataclasses.replace(setup, corpus=dataclasses.replace(setup.corpus, digest="0"))
    with pytest.raises(UserError, match="another text"):
        Trainer(other, Recorder())


def test_a_state_of_another_model_is_refused(make_setup: MakeSetup, tmp_path: Path) -> None:
    train(make_setup(tmp_path / "run", {"train.max_steps": 5}))
    with pytest.raises(UserError, match="another model"):
        Trainer(make_setup(tmp_path / "run", {"model.d_ff": 64}), Recorder())


def test_another_number_of_threads_brings_a_warning(make_setup: MakeSetup, tmp_path: Path) -> None:
    train(make_setup(tmp_path / "run", {"train.max_steps": 5}))
    path = tmp_path / "run/state/00000005"
    recorder = Recorder()
    torch.set_num_threads(2)
    try:
        Trainer(make_setup(tmp_path / "run", {}), recorder)
    finally:
        torch.set_num_threads(1)
    assert path.exists()
    assert "bit-exactness" in recorder.warnings[0]


def test_damage_is_told_with_the_last_good_step_and_a_remedy_that_works(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    train(make_setup(tmp_path / "whole", {}))
    run = Run(tmp_path / "run")
    train(make_setup(run.folder, {}))
    damaged = run.state(20) / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"20/state\.safetensors: damaged .* step 15 is the last"):
        train(make_setup(run.folder, {}))
    shutil.rmtree(run.state(20))
    train(make_setup(run.folder, {}))
    after, whole = digests(run.folder), digests(tmp_path / "whole")
    assert {**after, "log.jsonl": ""} == {**whole, "log.jsonl": ""}
    for step in (15, 20):
        (run.state(step) / "state.json").write_bytes(b"{}")
    with pytest.raises(UserError, match="no older state is whole; start anew with --overwrite"):
        train(make_setup(run.folder, {}))


def test_a_damaged_state_is_refused_by_name(make_setup: MakeSetup, tmp_path: Path) -> None:
    train(make_setup(tmp_path / "run", {"train.max_steps": 5}))
    path = tmp_path / "run/state/00000005/state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"state\.safetensors: damaged"):
        Trainer(make_setup(tmp_path / "run", {}), Recorder())


@pytest.mark.parametrize(
    "damage",
    [
        {"step": "5"},
        {"step": 1.5},
        {"n_tokens": -1},
        {"best_score": None},
        {"position": {"epoch": 0, "pool": -1, "batch": 0}},
        {"position": {"epoch": 0, "pool": 9, "batch": 0}},
        {"position": []},
        {"more": 1},
    ],
)
def test_impossible_progress_is_refused_even_if_its_manifest_fits(
    damage: dict[str, object], make_setup: MakeSetup, tmp_path: Path
) -> None:
    train(make_setup(tmp_path / "run", {"train.max_steps": 1}))
    folder = tmp_path / "run/state/00000001"
    files = {name: (folder / name).read_bytes() for name in ("state.json", "state.safetensors")}
    facts = json.loads(files["state.json"])
    facts["progress"] |= damage
    files["state.json"] = json.dumps(facts).encode()
    (folder / "state.json").write_bytes(files["state.json"])
    (folder / "manifest.json").write_bytes(manifest(files))
    with pytest.raises(UserError, match=r"state\.json: 'progress' is damaged"):
        Trainer(make_setup(tmp_path / "run", {}), Recorder())


def test_a_model_lost_between_state_and_checkpoint_is_written_again(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    train(make_setup(run.folder, {"train.max_steps": 10}))
    expected = digests(run.checkpoint(10))
    for path in sorted(run.checkpoint(10).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run.checkpoint(10).rmdir()

    Trainer(make_setup(run.folder, {}), Recorder())

    assert digests(run.checkpoint(10)) == expected


# Signals and limits


def test_a_signal_saves_the_step_it_comes_in(make_setup: MakeSetup, tmp_path: Path) -> None:
    outcome = train(make_setup(tmp_path / "run", {}), Recorder(signal_after=6))
    assert (outcome.step, outcome.signal) == (7, 15)
    assert Run(tmp_path / "run").steps("checkpoints")[-1] == 7


def test_asked_to_save_it_saves_and_goes_on(make_setup: MakeSetup, tmp_path: Path) -> None:
    recorder = Recorder(interrupt=Interrupt(save=True))
    assert train(make_setup(tmp_path / "run", {}), recorder).step == 20
    assert recorder.saves == [1, 5, 10, 15, 20]


def test_training_ends_after_the_epochs_asked_for(make_setup: MakeSetup, tmp_path: Path) -> None:
    settings: dict[str, Value] = {"train.max_steps": 1000, "train.max_epochs": 2}
    setup = make_setup(tmp_path / "run", {**settings, "data.batch_tokens": 1024})
    trainer = Trainer(setup, Recorder())
    outcome = trainer.run(Interrupt())
    assert outcome.reason == "max_epochs 2 reached"
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


def test_training_ends_when_nothing_gets_better(make_setup: MakeSetup, tmp_path: Path) -> None:
    stuck: dict[str, Value] = {
        "optim.lr": 1e-12,
        "train.metric": "loss",
        "train.validate_every": 2,
        "train.patience": 3,
        "train.ema": 0.0,
    }
    recorder = Recorder()
    outcome = train(make_setup(tmp_path / "run", stuck), recorder)
    n_best = recorder.validations[-1].step // 2 - 3
    assert outcome.reason == "no better loss in 3 validations"
    assert outcome.best_step == 2 * n_best


# Cooldown

COOLED: dict[str, Value] = {
    "data.bpe_dropout": 0.3,
    "data.batch_tokens": 1024,
    "train.cooldown": 100,  # the last 4 of 20
    "train.log_every": 1,
}


def rates(run: Run) -> list[float]:
    return [float(str(e["lr"])) for e in timeless_log(run) if e["kind"] == "step"]


@pytest.mark.parametrize("stop", [14, 15, 16, 17, 19])
def test_a_run_that_stops_around_its_cooldown_goes_on_as_if_it_had_not(
    stop: int, make_setup: MakeSetup, tmp_path: Path
) -> None:
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    train(make_setup(whole.folder, COOLED))
    outcome = train(make_setup(cut.folder, COOLED), Recorder(signal_after=stop - 1))
    assert outcome.step == stop
    train(make_setup(cut.folder, COOLED))
    assert digests(cut.state(20)) == digests(whole.state(20))
    assert rates(cut) == rates(whole)
    plain = make_setup(tmp_path / "plain", {**COOLED, "train.cooldown": 0})
    train(plain)
    usual = rates(plain.run)
    falling = [*usual[:17], usual[17] * 0.75, usual[18] / 2, usual[19] / 4]
    assert rates(whole) == pytest.approx(falling, rel=1e-3)  # the log rounds


def test_in_its_cooldown_a_model_sees_the_pieces_of_the_tokenizer(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    setup = make_setup(tmp_path / "run", COOLED)
    trainer = Trainer(setup, Recorder())
    examples = setup.corpus.examples(np.arange(len(setup.corpus)))
    own = {tuple(e.sides()[1]) for e in examples}

    def first_targets() -> set[tuple[int, ...]]:
        ((_, batch),) = next(trainer._updates(trainer.progress.position)).batches
        return {tuple(row[row > EOS].tolist()) for row in batch.tgt_in}

    assert not first_targets() <= own
    trainer.progress = replace(trainer.progress, cooldown=Cooldown(0, 4, "", 0))
    assert first_targets() <= own


def test_a_run_that_gets_no_better_ends_after_a_cooldown(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    stuck: dict[str, Value] = {
        "optim.lr": 1e-12,
        "train.metric": "loss",
        "train.validate_every": 2,
        "train.patience": 3,
        "train.ema": 0.0,
        "train.max_steps": 1000,
    }
    recorder = Recorder()
    begun = train(make_setup(tmp_path / "without", stuck)).step
    outcome = train(make_setup(tmp_path / "run", {**stuck, "train.cooldown": 2}), recorder)
    assert (outcome.step, outcome.reason) == (begun + 2, "no better loss in 3 validations")
    (message,) = recorder.messages
    assert message.startswith("cooling down before patience 3: 2 more updates")


@pytest.mark.parametrize("steps", [(10, 20), (18, 20), (11, 14, 20)])
def test_a_run_that_is_given_more_time_forgets_its_cooldown(
    steps: tuple[int, ...], make_setup: MakeSetup, tmp_path: Path
) -> None:
    whole, often = Run(tmp_path / "whole"), Run(tmp_path / "often")
    train(make_setup(whole.folder, COOLED))
    recorder = Recorder()
    for n in steps:
        train(make_setup(often.folder, {**COOLED, "train.max_steps": n}), recorder)
    assert (
        sum("going on from before the cooldown" in m for m in recorder.messages) == len(steps) - 1
    )
    for kind in ("checkpoints", "state"):
        assert digests(often.folder / kind / "00000020") == digests(
            whole.folder / kind / "00000020"
        )
    assert timeless_log(often) == timeless_log(whole)
    for name in ("best", "latest"):
        assert (often.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_finished_cooldown_is_not_begun_again(make_setup: MakeSetup, tmp_path: Path) -> None:
    train(make_setup(tmp_path / "run", COOLED))
    before = digests(tmp_path / "run")
    assert train(make_setup(tmp_path / "run", COOLED)).step == 20
    assert digests(tmp_path / "run") == before


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
    stuck: dict[str, Value] = {"optim.lr": 1e-12, "train.ema": 0.0, "train.patience": 100}
    often: dict[str, Value] = {"train.validate_every": 2, "train.save_every": 2, "train.keep": 1}
    train(make_setup(run.folder, {**stuck, **often, "train.metric": "chrf"}))
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
    assert trainer._scale is not None
    trainer._scale.state[0] = 2.0**40
    before = trainer._flat.master.clone()
    trainer.run(Interrupt())
    assert torch.equal(trainer._flat.master, before)
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
    assert [e["loss"] for e in log if e["kind"] == "step"] == [round(x, 6) for x in recorder.losses]


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


def test_a_tiny_model_learns_to_reverse(
    make_setup: MakeSetup, tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    rng = random.Random(1)
    lines = ["".join(rng.choices("0123456789", k=rng.randint(1, 6))) for _ in range(4000)]
    files = tmp_path / "src", tmp_path / "tgt"
    files[0].write_bytes("".join(f"{line}\n" for line in lines).encode())
    files[1].write_bytes("".join(f"{line[::-1]}\n" for line in lines).encode())
    corpus = open_corpus(files[:1], files[1:], small_tokenizer, 100, tmp_path / "data")
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
from seq2seq.checkpoint import Run
from seq2seq.config import RunConfig, override, read_toml
from seq2seq.corpus import open_corpus
from seq2seq.distributed import join_world, leave_world
from seq2seq.model import Transformer
from seq2seq.trainer import Interrupt, Setup, Trainer
from seq2seq.validation import hold_out
from tokenizer.folder import load_tokenizer


class Silent:
    def ignore(self, *anything): pass
    started = stepped = validating = validated = saved = warned = ignore


torch.set_num_threads(1)
src, tgt, folder = map(Path, sys.argv[1:])
world = join_world(os.environ, "cpu")
config = override(RunConfig(), read_toml((folder / "train.toml").read_bytes(), ""), "")
tokenizer = load_tokenizer(folder / "tokenizer")
corpus = open_corpus([src], [tgt], tokenizer, 100, folder / "data")
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
    }
    alone = make_setup(tmp_path / "alone", exact)
    train(alone)
    together = Run(tmp_path / "together")
    small_tokenizer.save(together.tokenizer)
    together.settings.write_bytes(write_toml(alone.config))
    open_corpus(parallel[:1], parallel[1:], small_tokenizer, 100, together.data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *parallel, together.folder],
            env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
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
    nlls = [
        [e["nll"] for e in timeless_log(run) if e["kind"] == "validation"]
        for run in (alone.run, together)
    ]
    assert nlls[0] == pytest.approx(nlls[1], abs=2e-6)


def test_a_run_does_not_go_on_with_another_validation_text(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    setup = make_setup(tmp_path, {"train.max_steps": 2, "train.save_every": 1})
    train(setup)
    longer = make_setup(tmp_path, {"train.max_steps": 4, "train.save_every": 1})
    other = replace(longer.validation, tgt=longer.validation.tgt[::-1])
    with pytest.raises(UserError, match="validated on another text"):
        Trainer(replace(longer, validation=other), Recorder())
