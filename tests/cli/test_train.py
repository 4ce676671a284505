import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path

import pytest

from cli.history import read_log
from seq2seq.config import read_toml
from seq2seq.run import Run
from seq2seq.storage import locked


def digests(folder):
    """What a run has learnt: the bytes of its checkpoints and states."""
    files = [path for kind in ("checkpoints", "state") for path in (folder / kind).rglob("*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


def test_asked_to_save_before_it_trains_it_saves_the_first_update(tfm, train_arguments, tmp_path):
    def ask():
        deadline = time.monotonic() + 30
        while not (tmp_path / "run" / "lock").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # if it comes when nothing is trained
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        result = tfm(*train_arguments, "--set", "train.keep=9")
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert result.code == 0
    assert Run(tmp_path / "run").steps("checkpoints")[0] == 1


@pytest.fixture
def signal_when_training(tmp_path):
    """Send this process signals: one when the run in `run` has logged a step, others after saves."""
    run = Run(tmp_path / "run")
    threads = []

    def has_logged():
        return run.log.exists() and run.log.stat().st_size > 0

    def wait_and_send(numbers):
        for n_saved, number in enumerate(numbers):
            deadline = time.monotonic() + 30
            while not (has_logged() and len(run.steps("state")) >= n_saved):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    def send(*numbers):
        threads.append(threading.Thread(target=wait_and_send, args=[numbers]))
        threads[0].start()

    yield send
    for thread in threads:
        thread.join()


def test_two_files_become_a_model(tfm, train_arguments, tmp_path):
    result = tfm(*train_arguments)
    assert (result.code, result.out) == (0, b"")
    assert "no tokenizer in" in result.err
    assert "held out for validation" in result.err
    assert "step 20 | validation | BLEU" in result.err
    assert "tfm translate -m" in result.err
    assert Run(tmp_path / "run").pointer("best")
    assert tfm("translate", "-m", "run", stdin=b"a dog\n").code == 0


def test_a_log_holds_one_plain_line_for_each_report(tfm, train_arguments):
    err = tfm(*train_arguments).err
    assert not {c for c in err if unicodedata.category(c) == "Cc"} - {"\n"}
    reports = [line for line in err.split("\n") if line.startswith("step ")]
    assert [line.split(" | ")[0] for line in reports] == [
        "step 5",
        "step 10",
        "step 10",
        "step 15",
        "step 16",  # then the cooldown begins
        "step 20",
        "step 20",
    ]


def test_a_finished_run_is_left_as_it_is(tfm, train_arguments, tmp_path):
    tfm(*train_arguments)
    before = digests(tmp_path / "run")
    result = tfm(*train_arguments)
    assert result.code == 0
    assert "already at step 20" in result.err
    assert digests(tmp_path / "run") == before


def test_a_longer_limit_goes_on_as_if_there_had_been_no_stop(tfm, train_arguments, tmp_path):
    by_loss = [*train_arguments, "--set", "train.metric=loss"]  # which goes on falling
    tfm(*by_loss)
    expected = digests(tmp_path / "run")
    tfm(*by_loss, "--overwrite", "--max-steps", 10)
    assert tfm(*by_loss, "--max-steps", 20).code == 0
    assert digests(tmp_path / "run") == expected


def test_a_changed_setting_is_refused_by_name(tfm, train_arguments):
    tfm(*train_arguments, "--max-steps", 1)
    result = tfm(*train_arguments, "--max-steps", 1, "--set", "model.dropout=0.5")
    assert result.code == 2
    assert "model.dropout: 0.1 → 0.5" in result.err


@pytest.mark.parametrize(
    ("now", "words"),
    [("lr = 0.5", "optim.lr: 0.01 → 0.5"), ("lr = 0.01\nbeta1 = 0.5", "optim.beta1: 0.9 → 0.5")],
)
def test_settings_edited_in_a_run_are_refused_by_name(tfm, train_arguments, tmp_path, now, words):
    assert tfm(*train_arguments, "--set", "optim.lr=0.01", "--max-steps", 1).code == 0
    settings = tmp_path / "run" / "train.toml"
    text = settings.read_bytes().decode()
    lines = [line for line in text.split("\n") if not line.startswith("beta1")]
    settings.write_bytes("\n".join(lines).replace("lr = 0.01", now).encode())
    result = tfm(*train_arguments, "--set", "optim.lr=0.01", "--max-steps", 2)
    assert result.code == 2
    assert f"train.toml: was changed since ({words})" in result.err


def test_the_end_of_a_cosine_is_not_moved_by_editing_either(tfm, train_arguments, tmp_path):
    cosine = ["--set", "optim.schedule=cosine", "--max-steps"]
    assert tfm(*train_arguments, *cosine, 2).code == 0
    settings = tmp_path / "run" / "train.toml"
    settings.write_bytes(settings.read_bytes().replace(b"max_steps = 2", b"max_steps = 4"))
    result = tfm(*train_arguments, *cosine, 4)
    assert (result.code, "train.max_steps: 2 → 4" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]
)
def test_a_signal_saves_and_stops(
    tfm, train_arguments, tmp_path, signal_when_training, number, code
):
    signal_when_training(number)
    result = tfm(*train_arguments, "--max-steps", 1_000_000, "--set", "train.save_every=1000000")
    assert result.code == code
    assert "run the same command again to go on" in result.err
    run = Run(tmp_path / "run")
    assert len(run.steps("state")) >= 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupted_process_ends_with_130(entry, train_arguments, tmp_path):
    command = [*entry, *train_arguments, "--max-steps", "1000000"]
    log = tmp_path / "run" / "log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_what_a_training_does_not_need_is_not_imported(train_arguments):
    code = """
import sys
from cli.app import main
code = main(sys.argv[1:])
sys.exit(code or ", ".join({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)) or 0)
"""
    command = [sys.executable, "-c", code, *train_arguments, "--max-steps", "1"]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()


def test_a_signal_to_save_does_not_stop(tfm, train_arguments, tmp_path, signal_when_training):
    signal_when_training(signal.SIGUSR1, signal.SIGTERM)
    result = tfm(
        *train_arguments,
        "--max-steps",
        1_000_000,
        "--set",
        "train.save_every=1000000",
        "--set",
        "train.validate_every=1000000",
    )
    assert result.code == 143
    assert len(Run(tmp_path / "run").steps("state")) == 2


def test_numbers_that_are_not_finite_stop_the_run(tfm, train_arguments):
    result = tfm(*train_arguments, "--set", "optim.lr=1e30", "--set", "optim.warmup_steps=0")
    assert result.code == 3
    assert "tfm: error: training stopped: step 2" in result.err
    assert "optim.lr" in result.err


def test_a_run_that_is_begun_anew_leaves_its_model_until_there_is_another(tfm, train_arguments):
    tfm(*train_arguments)
    before = tfm("translate", "-m", "run", stdin=b"a dog\n").out
    assert before
    result = tfm(*train_arguments, "--overwrite", "--set", "optim.lr=1e30")
    assert result.code == 3
    assert "the best model of the old run translates until the new one has been" in result.err
    assert tfm("translate", "-m", "run", stdin=b"a dog\n").out == before
    assert "best        of the run before, until this one" in tfm("info", "-m", "run").out.decode()
    assert tfm(*train_arguments, "--overwrite", "--max-steps", 1).code == 0
    assert "of the run before" not in tfm("info", "-m", "run").out.decode()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--max-steps", "0"], "--max-steps"),
        (["--batch-tokens", "1"], "--batch-tokens"),
        (["--seed", "-1"], "--seed"),
        (["--max-time", "soon"], "'soon'"),
        (["--set", "model.n_heads=3"], "model.n_heads = 3"),
        (["--set", "model.dropout=1.5"], "model.dropout: 1.5"),
        (["--set", "optim.lr=nan"], "optim.lr: nan"),
        (["--set", "optim.lrr=1"], "did you mean 'optim.lr'"),
        (["--set", "optim.lr"], "KEY=VALUE"),
        (["--preset", "huge"], "--preset huge"),
        (["--device", "tpu"], "--device tpu"),
        (["--device", "cpu", "--precision", "fp16"], "--precision fp16"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--src", "missing", "--tgt", "missing"], "missing"),
        (["--src", "more"], "--src is given 2 times and --tgt 1 times"),
        (["--valid-src", "more"], "--valid-src is given 1 times and --valid-tgt 0 times"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tfm, train_arguments, tmp_path, options, named
):
    result = tfm(*train_arguments, *options)
    assert (result.code, result.out) == (2, b"")
    assert named in result.err
    assert result.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_folder_of_other_things_stays_as_it_is(tfm, parallel, train_arguments, tmp_path):
    """A project whose corpus lies where a run would keep its ids."""
    (tmp_path / "data").mkdir()
    for path, name in zip(parallel, ("train.en", "train.de"), strict=True):
        (tmp_path / "data" / name).write_bytes(path.read_bytes())
    (tmp_path / "data" / "IRREPLACEABLE.txt").write_bytes(b"years of work")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    files = ["--src", "data/train.en", "--tgt", "data/train.de", "-m", "."]
    for options in ([], ["--overwrite"]):
        result = tfm("train", *files, *train_arguments[7:], *options)
        assert result.code == 2
        assert result.err == (
            "tfm: error: data/IRREPLACEABLE.txt: is not of tfm's making and would be lost; "
            "move it, or give another -m\n"
        )
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
        assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_empty_files_are_refused(tfm, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    result = tfm("train", "--src", "empty", "--tgt", "empty", "-m", "run")
    assert (result.code, result.err) == (
        2,
        "tfm: error: empty: no usable pairs; the file is empty\n",
    )
    assert not (tmp_path / "run").exists()


def test_files_that_differ_in_length_are_named_with_their_counts(tfm, parallel, tmp_path):
    (tmp_path / "short").write_bytes(b"one\n")
    result = tfm("train", "--src", parallel[0], "--tgt", "short", "-m", "run")
    assert result.code == 2
    assert "has 200 lines and short has 1" in result.err
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_write_one_run(tfm, train_arguments, tmp_path):
    with locked(tmp_path / "run"):
        result = tfm(*train_arguments)
        assert result.code == 2
        assert f"process {os.getpid()}" in result.err


def test_shown_settings_are_a_file_of_settings(tfm, train_arguments, tmp_path):
    shown = tfm(*train_arguments, "--show-config", "--max-epochs", 3, "--seed", 7)
    assert shown.code == 0
    values = read_toml(shown.out, "shown")
    assert (values["train.max_epochs"], values["train.seed"]) == (3, 7)
    assert values["model.d_model"] == 16
    assert values["model.vocab_size"] == values["data.vocab_size"] == 300
    (tmp_path / "settings.toml").write_bytes(shown.out)
    src_and_tgt = train_arguments[1:5]
    again = tfm("train", *src_and_tgt, "--config", "settings.toml", "--show-config")
    assert again.out == shown.out
    assert not (tmp_path / "run").exists()


def test_a_flag_goes_before_a_file_also_where_it_says_the_default(tfm, train_arguments, tmp_path):
    (tmp_path / "settings.toml").write_bytes(b'[train]\nprecision = "fp64"\n')
    command = [*train_arguments[:-2], "--config", "settings.toml", "--show-config"]
    shown = [tfm(*command, *more).out for more in ([], ["--precision", "auto"])]
    assert [read_toml(s, "shown")["train.precision"] for s in shown] == ["fp64", "auto"]


def test_small_numbers_are_in_the_log_as_they_were(tfm, train_arguments, tmp_path):
    tfm(*train_arguments, "--set", "optim.lr=4e-7", "--set", "optim.warmup_steps=4")
    rates = [e["lr"] for e in read_log(Run(tmp_path / "run").log) if e["kind"] == "step"]
    assert rates[0] == pytest.approx(3.57770876e-07, rel=1e-8)  # of step 5


def test_of_several_processes_the_first_shows_the_settings(tfm, train_arguments, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        result = tfm(*train_arguments, "--show-config")
        assert result.code == 0
        shown.append((bool(result.out), bool(result.err)))
    assert shown == [(True, True), (False, False)]


def test_each_process_that_torchrun_started_has_a_micro_batch(tfm, parallel, monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = tfm("train", "--src", parallel[0], "--tgt", parallel[1], "--show-config")
    shown = read_toml(result.out, "shown")
    assert (shown["data.batch_tokens"], shown["optim.accumulate"]) == (2048 // 3, 3)
    assert "optim.accumulate = 3 2046 tokens an update, one" in " ".join(result.err.split())


def test_a_size_of_updates_that_is_not_the_presets_is_not_called_so(tfm, parallel):
    command = ["train", "--src", parallel[0], "--tgt", parallel[1], "--threads", 2, "--show-config"]
    assert "2048 tokens an update, one micro-batch for each of 2" in tfm(*command).err
    for more in (["--batch-tokens", 512], ["--set", "optim.accumulate=8"]):
        assert "an update" not in tfm(*command, *more).err


def test_fine_tuning_starts_from_another_model(tfm, model, train_arguments, tmp_path):
    arguments = [a for a in train_arguments if "vocab" not in a]
    src_and_tgt_and_run = arguments[:7]
    result = tfm(*src_and_tgt_and_run, "--init-from", model, "--max-steps", 1)
    assert result.code == 0
    name = Path("tokenizer/tokenizer.json")
    assert (tmp_path / "run" / name).read_bytes() == (model / name).read_bytes()


def test_one_model_learns_several_directions(tfm, train_arguments, parallel, tmp_path):
    src, _ = parallel
    more = ["--tgt-lang", "back", "--src", src, "--tgt", src, "--tgt-lang", "copy"]
    weights = ["--weight", "1", "--weight", "0.5", "--max-steps", "3"]
    result = tfm(*train_arguments, *more, *weights)
    assert result.code == 0, result.err
    assert (tfm(*train_arguments, *more, *weights)).code == 0
    run = tmp_path / "run"
    for command in (["translate"], ["evaluate", "--src", src, "--ref", src]):
        asked = tfm(*command, "-m", run, "--tgt-lang", "copy", stdin=b"a dog\n")
        assert (asked.code, asked.err) == (0, asked.err), asked.err
        assert asked.out
        for language in ([], ["--tgt-lang", "de"]):
            refused = tfm(*command, "-m", run, *language)
            assert refused.code == 2
            assert "give one of back, copy" in refused.err
    assert tfm("score", "-m", run, "--src", src, "--tgt", src, "--tgt-lang", "copy").code == 0
    changed = tfm(*train_arguments, *more, "--weight", "1", "--weight", "2", "--max-steps", "3")
    assert changed.code == 2
    assert "data.weights: 1 0.5 → 1 2" in changed.err
