import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes import everything_in
from training import (
    COOLED,
    DROPOUT,
    STUCK,
    Killed,
    MakeSetup,
    Recorder,
    digests,
    timeless_log,
    train,
)

from seq2seq.config import Value
from seq2seq.optim import LossScale
from seq2seq.reports import ValidationReport
from seq2seq.run import Run
from seq2seq.storage import manifest
from seq2seq.trainer import Setup, Trainer
from tokenizer.errors import UserError
from tokenizer.files import publish_file

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

COOLDOWN = {"start": 1, "n": 1, "kind": "max_steps", "value": 2.0, "best_step": 1}


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


def test_updates_that_overflow_are_not_counted_by_a_resumed_run_either(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average of weights forgets by the number of updates that were made."""
    monkeypatch.setattr(LossScale, "START", 2.0**20)
    settings: dict[str, Value] = {"train.precision": "fp16", "train.ema": 0.999}
    whole, stopped = Run(tmp_path / "whole"), Run(tmp_path / "stopped")
    train(make_setup(whole.folder, settings))
    train(make_setup(stopped.folder, {**settings, "train.max_steps": 15}))
    train(make_setup(stopped.folder, settings))
    n_overflows = [entry["kind"] for entry in timeless_log(whole)].count("overflow")
    assert 0 < n_overflows < 15
    assert digests(stopped.checkpoint(20)) == digests(whole.checkpoint(20))


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


@dataclasses.dataclass
class Impatient(Recorder):
    """Sends a signal when so many sentences of a validation are translated, each time."""

    after: int = 0

    def validating(self, done: int, total: int) -> None:
        super().validating(done, total)
        if done == self.after:
            self.interrupt.stop = 15


def test_a_signal_that_comes_when_all_is_translated_leaves_the_validation(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    recorder = Impatient(after=8)
    outcome = train(make_setup(tmp_path / "run", {}), recorder)
    assert (outcome.step, outcome.signal, len(recorder.validations)) == (11, 15, 1)


def test_what_was_saved_stays_until_its_validation_is_saved(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seq2seq.validation._TRANSLATED_ROWS", 2)
    run = Run(tmp_path / "run")
    train(make_setup(run.folder, {}), Recorder(signal_after=9))
    waiting = run.folder / "state/00000010-unvalidated"
    before = digests(waiting)
    train(make_setup(run.folder, {}), Impatient(after=2))
    assert digests(waiting) == before
    assert run.saved_state(10) == waiting

    class KilledThere(Recorder):
        def validated(self, report: ValidationReport) -> None:
            raise Killed

    with pytest.raises(Killed):
        train(make_setup(run.folder, {}), KilledThere())
    assert digests(waiting) == before
    train(make_setup(run.folder, {}))
    whole = Run(tmp_path / "whole")
    train(make_setup(whole.folder, {}))
    assert timeless_log(run) == timeless_log(whole)
    assert digests(run.state(20)) == digests(whole.state(20))
    assert not list(run.folder.glob("state/*-unvalidated"))


@pytest.mark.parametrize(
    "recorder",
    [Recorder(signal_after=9), Recorder(signal_after=11), Impatient(after=2)],
    ids=["before a validation", "before the last one", "during the first"],
)
def test_a_signal_does_not_wait_for_a_validation_which_is_made_up_for(
    recorder: Recorder, make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seq2seq.validation._TRANSLATED_ROWS", 2)
    settings: dict[str, Value] = {**COOLED, "train.max_steps": 12, "train.validate_every": 10}
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    train(make_setup(whole.folder, settings))
    outcome = train(make_setup(cut.folder, settings), recorder)
    assert outcome.signal == 15
    assert outcome.step in (10, 12)
    assert len(recorder.validations) == (outcome.step == 12)
    again = Recorder()
    assert train(make_setup(cut.folder, settings), again).step == 12
    assert len(again.validations) + len(recorder.validations) == 2
    assert timeless_log(cut) == timeless_log(whole)
    assert digests(cut.state(12)) == digests(whole.state(12))
    assert (cut.folder / "best").read_bytes() == (whole.folder / "best").read_bytes()
    before = digests(cut.folder)
    assert train(make_setup(cut.folder, settings)).reason == "max_steps 12 reached"
    assert digests(cut.folder) == before


def test_a_validation_that_is_not_due_any_more_is_not_made_up_for(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    plain: dict[str, Value] = {"train.validate_every": 10}
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    train(make_setup(whole.folder, plain))
    train(make_setup(cut.folder, {**plain, "train.max_steps": 6}), Recorder(signal_after=5))
    train(make_setup(cut.folder, plain))
    assert digests(cut.state(20)) == digests(whole.state(20))
    assert timeless_log(cut) == timeless_log(whole)


@pytest.mark.parametrize("rate", [1e-12, 0.01])
def test_a_limit_between_two_validations_costs_no_patience(
    rate: float, make_setup: MakeSetup, tmp_path: Path
) -> None:
    """Also where it finds the best model, here that of step 6, which a rate of 0.01 gets beyond."""
    plain: dict[str, Value] = {**STUCK, "train.validate_every": 4, "train.patience": 5}
    plain["optim.lr"] = rate
    whole, often = Run(tmp_path / "whole"), Run(tmp_path / "often")
    train(make_setup(whole.folder, plain))
    for n in (6, 9, 20):
        train(make_setup(often.folder, {**plain, "train.max_steps": n}))
    assert digests(often.state(20)) == digests(whole.state(20))


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
    other = replace(setup, corpus=replace(setup.corpus, digest="0"))
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


def test_another_version_brings_a_warning(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_setup(tmp_path / "run", {"train.max_steps": 5}))
    recorder = Recorder()
    Trainer(make_setup(tmp_path / "run", {}), recorder)
    assert recorder.warnings == []
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99")
    Trainer(make_setup(tmp_path / "run", {}), recorder)
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
        {"n_tokens": 10**400},
        {"best_step": 1 << 53},
        {"best_score": None},
        {"position": {"epoch": 0, "pool": -1, "batch": 0}},
        {"position": {"epoch": 0, "pool": 9, "batch": 0}},
        {"position": []},
        {"usual_score": 1},
        {"awaits_validation": 0},
        {"cooldown": {"start": 1, "n": 1, "kind": [], "value": 2.0, "best_step": 1}},
        {"cooldown": {"start": 1, "n": 1, "kind": "max_steps", "value": 2, "best_step": 1}},
        {"cooldown": {"start": 1, "n": 0, "kind": "max_steps", "value": 2.0, "best_step": 1}},
        {"cooldown": {**COOLDOWN, "position": {"epoch": 0, "pool": 0, "batch": 10**6}}},
        {"cooldown": {**COOLDOWN, "position": {"epoch": 9, "pool": 0, "batch": 0}}},
        {"cooldown": {**COOLDOWN, "position": {"epoch": -1, "pool": 0, "batch": 0}}},
        {"cooldown": {**COOLDOWN, "position": {"epoch": 0.0, "pool": 0, "batch": 0}}},
        {"cooldown": {**COOLDOWN, "position": [0, 0, 0]}},
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


def test_a_state_under_the_name_of_another_step_is_refused(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    train(make_setup(run.folder, {"train.max_steps": 3}))
    run.state(3).rename(run.state(7))
    with pytest.raises(UserError, match=r"00000007/state\.json: is of step 3, not of 7"):
        Trainer(make_setup(run.folder, {}), Recorder())


@pytest.mark.parametrize("damaged", ["best", "latest", "checkpoints/00000005/model.safetensors"])
def test_a_run_that_cannot_go_on_loses_nothing(
    damaged: str, make_setup: MakeSetup, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    settings: dict[str, Value] = {"train.metric": "loss", "train.cooldown": 2}
    settings |= {"train.validate_every": 5, "train.save_every": 5}
    train(make_setup(run.folder, {**settings, "train.max_steps": 10}))
    if damaged.startswith("checkpoints"):
        publish_file(run.folder / "best", b"00000005\n")
    with (run.folder / damaged).open("ab") as file:
        file.write(b"x")
    before = everything_in(run.folder)
    for steps in (10, 15):  # as it was, and with time to go on from before the cooldown
        with pytest.raises(UserError, match=damaged):
            Trainer(make_setup(run.folder, {**settings, "train.max_steps": steps}), Recorder())
        assert everything_in(run.folder) == before


def without_spaces(setup: Setup) -> Setup:
    tgt = [line.replace(" ", "") for line in setup.validation.tgt]
    validation = replace(setup.validation, tgt=tgt)
    return replace(setup, validation=validation)


def test_what_bleu_counts_stays_for_a_whole_run(make_setup: MakeSetup, tmp_path: Path) -> None:
    train(without_spaces(make_setup(tmp_path / "run", {"train.max_steps": 10})))
    folder = tmp_path / "run/state/00000010"
    files = {name: (folder / name).read_bytes() for name in ("state.json", "state.safetensors")}
    facts = json.loads(files["state.json"])
    assert facts.pop("tokenize") == "char"
    files["state.json"] = json.dumps(facts).encode()  # of a run from when there was no choice
    (folder / "state.json").write_bytes(files["state.json"])
    (folder / "manifest.json").write_bytes(manifest(files))
    recorder = Recorder()
    train(without_spaces(make_setup(tmp_path / "run", {})), recorder)
    assert [v.tokenize for v in recorder.validations] == ["13a"]


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


def test_a_damaged_model_is_written_again_or_refused(make_setup: MakeSetup, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    settings: dict[str, Value] = {"train.metric": "loss", "train.validate_every": 5}
    train(make_setup(run.folder, {**settings, "train.max_steps": 10}))
    expected = digests(run.checkpoint(10))
    for step in (10, 5):
        weights = run.checkpoint(step) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    run.point("best", 10)
    Trainer(make_setup(run.folder, settings), Recorder())
    assert digests(run.checkpoint(10)) == expected
    publish_file(run.folder / "best", b"00000005\n")
    with pytest.raises(UserError, match=r"00000005.*damaged.*remove the folder .* to go on"):
        Trainer(make_setup(run.folder, settings), Recorder())


def test_a_run_does_not_go_on_with_another_validation_text(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    setup = make_setup(tmp_path, {"train.max_steps": 2, "train.save_every": 1})
    train(setup)
    longer = make_setup(tmp_path, {"train.max_steps": 4, "train.save_every": 1})
    other = replace(longer.validation, tgt=longer.validation.tgt[::-1])
    with pytest.raises(UserError, match="validated on another text"):
        Trainer(replace(longer, validation=other), Recorder())
