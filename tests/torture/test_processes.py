"""Two processes under torchrun: no fault of one of them makes another one hang, or loses anything."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from seq2seq.checkpoint import load_model
from seq2seq.run import Run

pytestmark = pytest.mark.torture
HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = [sys.executable, "-P", "-c", "import sys; from cli.app import main; sys.exit(main())"]
SETTINGS = """
    model.d_model=8 model.d_ff=16 model.n_heads=2 model.n_encoder_layers=1 model.n_decoder_layers=1
    model.dropout=0.0 data.vocab_size=280 data.bpe_dropout=0.0 data.batch_tokens=256 data.holdout=5
    optim.accumulate=3 optim.lr=0.01 optim.warmup_steps=2 train.ema=0.5 train.validate_every=4
    train.save_every=2 train.log_every=1 train.metric=loss train.precision=fp64 train.max_steps=8
"""
LIMIT = 90  # seconds that anything may take here, on a busy machine


def environment():
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **loopback}


def arguments(parallel, run, *more):
    assigned = [word for setting in SETTINGS.split() for word in ("--set", setting)]
    files = ["--src", str(parallel[0]), "--tgt", str(parallel[1])]
    return ["train", *files, "-m", str(run), "--threads", "1", *assigned, *more]


def together(parallel, run, *more, fault="none"):
    """Start two processes."""
    rank = ["--no-python", sys.executable, str(HERE / "rank.py"), fault]
    words = [*TORCHRUN, *rank, *arguments(parallel, run, *more)]
    return subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE)


def alone(parallel, run, *more):
    words = [*ALONE, *arguments(parallel, run, *more)]
    subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=LIMIT)


def finish(process):
    """Wait for the end; exit code and messages."""
    err = process.communicate(timeout=LIMIT)[1].decode()
    return process.returncode, err


def succeed(process):
    code, err = finish(process)
    assert code == 0, err


def wait_for(process, words):
    """Wait until a line of the messages begins so."""
    for line in process.stderr:
        if line.startswith(words):
            return
    raise AssertionError(f"ended before {words}")


def ranks(process):
    """Process ids of the two ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_bytes()
    return [int(pid) for pid in children.split()]


def weights(run, step=8):
    return safetensors.torch.load((Run(run).state(step) / "state.safetensors").read_bytes())


def validations(run):
    entries = [json.loads(line) for line in Run(run).log.read_bytes().split(b"\n")[:-1]]
    return [(e["step"], e["nll"], e["bleu"]) for e in entries if e["kind"] == "validation"]


def digests(run):
    files = sorted(Run(run).checkpoint(8).rglob("*.*"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def assert_equal_runs(one, two):
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(two)[name], tensor, rtol=0, atol=1e-10)
    for (step, nll, bleu), other in zip(validations(one), validations(two), strict=True):
        assert (step, bleu) == (other[0], other[2])
        assert nll == pytest.approx(other[1], abs=2e-6)


@pytest.fixture(scope="module")
def whole(parallel, tmp_path_factory):
    """A run of one process that nobody disturbed, and one of two."""
    folder = tmp_path_factory.mktemp("whole")
    alone(parallel, folder / "one")
    succeed(together(parallel, folder / "two"))
    return folder


@pytest.fixture(autouse=True)
def count(tally):
    tally["cases tried"] += 1


def test_an_odd_number_of_micro_batches_is_the_same_update_for_one_process_and_two(whole):
    assert_equal_runs(whole / "one", whole / "two")


def test_two_processes_repeat_byte_for_byte(parallel, whole, tmp_path):
    succeed(together(parallel, tmp_path / "run"))
    assert digests(tmp_path / "run") == digests(whole / "two")


@pytest.mark.parametrize("first", ["one", "two"])
def test_a_run_goes_on_with_another_number_of_processes(first, parallel, whole, tmp_path):
    run = tmp_path / "run"
    if first == "one":
        alone(parallel, run, "--max-steps", "4")
        code, err = finish(together(parallel, run))
        assert code == 0
        assert "bit-exactness is not promised" in err
    else:
        succeed(together(parallel, run, "--max-steps", "4"))
        alone(parallel, run)
    assert_equal_runs(whole / "one", run)


def test_no_rank_removes_what_another_one_still_reads(parallel, tmp_path):
    # The shorter run ends in a cooldown; given more time, the ranks go back to the state before it.
    cooled = ["--set", "train.cooldown=100", "--set", "data.bpe_dropout=0.1"]
    succeed(together(parallel, tmp_path / "whole", *cooled))
    succeed(together(parallel, tmp_path / "run", *cooled, "--max-steps", "6"))
    code, err = finish(together(parallel, tmp_path / "run", *cooled, fault="late"))
    assert code == 0, err
    assert "going on from before the cooldown, step 5" in err
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_one_pair_is_enough_for_two_processes(tmp_path):
    (tmp_path / "one").write_bytes(b"a dog runs\n")
    files = (tmp_path / "one", tmp_path / "one")
    valid = ["--valid-src", str(files[0]), "--valid-tgt", str(files[1])]
    succeed(together(files, tmp_path / "run", *valid))
    assert Run(tmp_path / "run").pointer("latest") == "00000008"


def test_validation_pairs_that_cannot_be_shared_evenly_are_each_counted_once(parallel, tmp_path):
    valid = tmp_path / "valid.src", tmp_path / "valid.tgt"
    for file, source in zip(valid, parallel, strict=True):
        file.write_bytes(b"".join(line + b"\n" for line in source.read_bytes().split(b"\n")[:21]))
    options = ["--valid-src", str(valid[0]), "--valid-tgt", str(valid[1])]
    alone(parallel, tmp_path / "one", *options)
    succeed(together(parallel, tmp_path / "two", *options))
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("which", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_and_the_run_goes_on(
    which, parallel, whole, tmp_path, tally
):
    process = together(parallel, tmp_path / "run")
    wait_for(process, b"step 5 ")
    begun = time.monotonic()
    os.kill(ranks(process)[which], signal.SIGKILL)
    code, _ = finish(process)
    assert code != 0
    assert time.monotonic() - begun < 30
    load_model(tmp_path / "run")
    tally["kills survived"] += 1
    succeed(together(parallel, tmp_path / "run"))
    assert digests(tmp_path / "run") == digests(whole / "two")


@pytest.mark.parametrize("to", ["all", "first", "last"])
def test_a_signal_to_stop_is_heard_by_all_wherever_it_arrives(to, parallel, whole, tmp_path):
    slow = ["--max-steps", "100000", "--set", "train.save_every=100000"]
    process = together(parallel, tmp_path / "run", *slow, "--set", "train.validate_every=100000")
    wait_for(process, b"step 2 ")
    begun = time.monotonic()
    pids = {"all": [process.pid], "first": ranks(process)[:1], "last": ranks(process)[1:]}[to]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    code, err = finish(process)
    assert code != 0
    assert time.monotonic() - begun < 30
    assert err.count("run the same command again to go on") == 1
    [step] = Run(tmp_path / "run").steps("state")
    assert Run(tmp_path / "run").steps("checkpoints") == [step]


def test_a_gradient_that_is_no_number_on_one_rank_stops_all_before_the_update(
    parallel, whole, tmp_path
):
    code, err = finish(together(parallel, tmp_path / "run", fault="nan:5"))
    assert code != 0
    assert err.count("tfm: error: training stopped: step 5") == 1
    assert Run(tmp_path / "run").steps("state") == [2, 4]
    succeed(together(parallel, tmp_path / "run"))
    assert digests(tmp_path / "run") == digests(whole / "two")


@pytest.mark.parametrize("operation", [3, 60, 130])
def test_a_full_disk_on_the_first_rank_ends_all_with_one_message(
    operation, parallel, whole, tmp_path, tally
):
    run = tmp_path / "disk" / "run"
    run.parent.mkdir()
    code, err = finish(together(parallel, run, fault=f"full:{operation}"))
    assert code != 0
    assert err.count("tfm: error: ") == 1
    assert "No space left on device" in err
    assert not list(run.parent.rglob(".tmp*"))
    tally["faults injected"] += 1
    succeed(together(parallel, run))
    assert digests(run) == digests(whole / "two")


def test_only_the_first_rank_writes(parallel, whole, tmp_path):
    run = tmp_path / "disk" / "run"
    run.parent.mkdir()
    succeed(together(parallel, run, fault="quiet"))
    assert digests(run) == digests(whole / "two")


def test_files_that_differ_in_length_are_named_once(parallel, tmp_path):
    (tmp_path / "short").write_bytes(b"one\n")
    code, err = finish(together((parallel[0], tmp_path / "short"), tmp_path / "run"))
    assert code != 0
    assert err.count("tfm: error: ") == 1
    assert "has 200 lines and" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_that_read_different_text_are_told_so(parallel, tmp_path):
    (tmp_path / "other").write_bytes(parallel[0].read_bytes().replace(b"dog", b"cat"))
    process = together(parallel, tmp_path / "run", fault=f"other:{tmp_path / 'other'}")
    code, err = finish(process)
    assert code != 0
    assert err.count("tfm: error: ") == 1
    assert "another text" in err
    assert "this is a bug" not in err
