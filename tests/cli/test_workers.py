import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cli.workers import useful_processes

TFM = [sys.executable, "-P", "-c", "import sys; from cli.app import main; sys.exit(main())"]
TINY = "model.d_model=32 model.d_ff=32 model.n_encoder_layers=1 model.n_decoder_layers=1 model.n_heads=2"
STEADY = "model.dropout=0.1 data.bpe_dropout=0.1 data.batch_tokens=256 train.ema=0.0 train.precision=fp32"


def command(parallel, run, *more):
    settings = [
        word for s in f"{TINY} {STEADY} optim.accumulate=2".split() for word in ("--set", s)
    ]
    files = ["--src", str(parallel[0]), "--tgt", str(parallel[1])]
    return [*TFM, "train", *files, "-m", str(run), *settings, *more]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]


@pytest.mark.parametrize(
    ("threads", "d_model", "n_micro", "expected"),
    [
        (1, 128, 4, 1),
        (2, 128, 1, 1),
        (2, 128, 2, 2),
        (3, 128, 4, 2),
        (8, 256, 6, 6),
        (8, 512, 8, 1),
    ],
)
def test_processes_share_micro_batches_evenly(threads, d_model, n_micro, expected):
    assert useful_processes(threads, d_model, n_micro) == expected


def test_two_processes_learn_what_one_learns(parallel, tmp_path):
    for threads in ("1", "2"):
        run = command(parallel, tmp_path / threads, "--max-steps", "6", "--threads", threads)
        subprocess.run(run, env=environment(), check=True, capture_output=True)
    one, two = (
        load_file(tmp_path / threads / "checkpoints" / "00000006" / "model.safetensors")
        for threads in ("1", "2")
    )
    assert all((one[name] - two[name]).abs().max() < 1e-4 for name in one)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_others_end_with_the_first_however_it_ends(parallel, tmp_path):
    run = command(parallel, tmp_path / "run", "--max-steps", "100000", "--set", "train.log_every=1")
    process = subprocess.Popen(run, env=environment(), stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"step 2 " in line:
            break
    others = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.stderr.close()
    process.wait()
    assert len(others) == 1
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in others):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_signal_to_the_first_stops_all_and_saves(parallel, tmp_path):
    run = command(parallel, tmp_path / "run", "--max-steps", "100000", "--set", "train.log_every=1")
    process = subprocess.Popen(run, env=environment(), stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"step 2 " in line:
            break
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    process.stderr.close()
    assert process.wait() == 143
    assert (tmp_path / "run" / "latest").exists()
