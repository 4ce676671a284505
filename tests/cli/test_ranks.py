import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import typer
from safetensors.torch import load_file

from cli.ranks import companions, useful_processes

TFM = [sys.executable, "-P", "-c", "import sys; from cli.app import main; sys.exit(main())"]
TINY = "model.d_model=32 model.d_ff=32 model.n_encoder_layers=1 model.n_decoder_layers=1 model.n_heads=2"
STEADY = (
    "model.dropout=0.1 data.bpe_dropout=0.1 data.batch_tokens=256 "
    "train.ema=0.0 train.precision=fp32 optim.warmup_steps=1"
)


def command(parallel, run, *more, settings=f"{STEADY} optim.accumulate=2"):
    assigned = [word for s in f"{TINY} {settings}".split() for word in ("--set", s)]
    files = ["--src", str(parallel[0]), "--tgt", str(parallel[1])]
    return [*TFM, "train", *files, "-m", str(run), *assigned, *more]


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
        (8, 512, 4, 4),
        (8, 1024, 8, 1),
    ],
)
def test_processes_share_micro_batches_evenly(threads, d_model, n_micro, expected):
    assert useful_processes(threads, d_model, n_micro) == expected


def test_two_processes_learn_what_one_learns(parallel, tmp_path):
    weights = {}
    for threads in ("1", "2"):
        folder = tmp_path / threads
        run = command(parallel, folder, "--max-steps", "6", "--set", "train.save_every=1")
        run += ["--set", "train.keep=7", "--threads", threads, "--"]  # where options may end
        subprocess.run(run, env=environment(), check=True, capture_output=True)
        for step in (1, 6):
            file = folder / "checkpoints" / f"{step:08d}" / "model.safetensors"
            weights[threads, step] = load_file(file)
    for name, learnt in weights["1", 6].items():
        moved = (learnt - weights["1", 1][name]).abs().mean()
        assert moved > 1e-3
        assert (learnt - weights["2", 6][name]).abs().mean() < 1e-3 * moved


@pytest.mark.slow
def test_all_processes_train_by_the_settings_of_the_first(parallel, tmp_path):
    """Three of four threads share the work, so the others see fewer, and would choose otherwise."""
    settings = "train.precision=fp32 train.max_steps=4 optim.accumulate=3"
    progress = []
    for threads in ("4", "1"):
        run = tmp_path / threads
        train = command(parallel, run, "--threads", threads, settings=settings)
        subprocess.run(train, env=environment(), check=True, capture_output=True)
        progress.append(json.loads((run / "state/00000004/state.json").read_bytes())["progress"])
        chosen = tomllib.loads((run / "train.toml").read_bytes().decode())["data"]["batch_tokens"]
        settings += f" data.batch_tokens={chosen}"
    together, alone = progress
    assert (together["n_tokens"], together["position"]) == (alone["n_tokens"], alone["position"])


def begun(parallel, run):
    """A training without end by several processes, after its second update."""
    train = command(parallel, run, "--max-steps", "100000", "--set", "train.log_every=1")
    process = subprocess.Popen(train, env=environment(), stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"step 2 " in line:
            break
    return process


def listeners(pid):
    """The addresses at which a process waits to be called, as /proc writes them."""
    links = [str(p.readlink()) for p in Path(f"/proc/{pid}/fd").iterdir() if p.is_symlink()]
    tables = [Path(f"/proc/{pid}/net/{name}").read_bytes().decode() for name in ("tcp", "tcp6")]
    entries = [line.split() for table in tables for line in table.split("\n") if line]
    return {e[1] for e in entries if e[3] == "0A" and f"socket:[{e[9]}]" in links}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_others_end_with_the_first_and_none_can_be_called_from_another_machine(
    parallel, tmp_path, monkeypatch
):
    meetings = tmp_path / "meetings"
    meetings.mkdir()
    monkeypatch.setenv("TMPDIR", str(meetings))
    process = begun(parallel, tmp_path / "run")
    assert len(list(meetings.iterdir())) == 1
    found = [place for pid in (process.pid, *children(process.pid)) for place in listeners(pid)]
    assert all(place.startswith("0100007F:") for place in found), found  # 127.0.0.1
    others = children(process.pid)
    told = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in others]
    process.send_signal(signal.SIGKILL)
    process.stderr.close()
    process.wait()
    assert len(others) == 1
    assert b"OMP_NUM_THREADS=1" in told[0]
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in others) or list(meetings.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_an_update_has_a_micro_batch_for_each_process_and_keeps_them(parallel, tmp_path):
    run = tmp_path / "run"
    settings = f"{STEADY} optim.accumulate=1"
    code, err = together(2, tmp_path, command(parallel, run, "--max-steps", "1", settings=settings))
    assert code == 0, err
    assert "optim.accumulate = 2" in err
    train = command(parallel, run, "--max-steps", "2", settings=settings)
    code, err = together(3, tmp_path, train)
    assert code == 2
    assert "has 2 micro-batches (optim.accumulate), too few for 3 processes" in err
    assert tomllib.loads((run / "train.toml").read_bytes().decode())["optim"]["accumulate"] == 2


def together(n, folder, train):
    """Train by so many processes; returns the exit code and the messages of the first."""
    world = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "TFM_MEETING": str(folder / str(n))}
    processes = [
        subprocess.Popen(
            train,
            env={**environment(), **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(n)
    ]
    try:
        err = processes[0].communicate(timeout=120)[1].decode()
        if processes[0].returncode == 0:
            assert [process.wait(60) for process in processes] == [0] * n
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return processes[0].returncode, err


@pytest.mark.slow  # it waits for what the first might say, and for the first to end
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_only_another_process_finds_wrong_is_said(parallel, tmp_path, monkeypatch):
    """A file that goes away after the first process has looked at it and started the others."""
    meetings = tmp_path / "meetings"
    meetings.mkdir()
    monkeypatch.setenv("TMPDIR", str(meetings))
    src = tmp_path / "train.src"
    shutil.copy(parallel[0], src)
    run = command([src, parallel[1]], tmp_path / "run", "--max-steps", "4")
    process = subprocess.Popen(run, env=environment(), stderr=subprocess.PIPE)
    while not children(process.pid):
        time.sleep(0.01)
    src.unlink()
    err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 2
    assert f"tfm: error: {src}: cannot be read" in err
    assert "said why above" in err
    assert "killed" not in err
    assert not any(meetings.iterdir())


@pytest.mark.parametrize("option", ["--src", "--tgt", "--valid-src", "--valid-tgt", "--config"])
@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_name_that_means_another_file_to_each_process_is_refused(
    tfm, train_arguments, tmp_path, option, name
):
    result = tfm(*train_arguments, option, name)
    assert result.code == 2
    assert result.err.startswith(f"tfm: error: {name}: may be another file to each process")
    assert result.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_signal_to_the_first_stops_all_and_saves(parallel, tmp_path):
    process = begun(parallel, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    process.stderr.read()
    process.stderr.close()
    assert process.wait() == 143
    assert (tmp_path / "run" / "latest").exists()


def test_where_all_has_been_said_the_others_are_not_waited_for(parallel, tmp_path):
    start = time.monotonic()
    with (
        pytest.raises(typer.Exit),
        companions(5, command(parallel, tmp_path / "run")[len(TFM) :], 1),
    ):
        raise typer.Exit(2)
    assert time.monotonic() - start < 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "is_early",
    [False, pytest.param(True, marks=pytest.mark.slow)],  # what waits to meet it waits ten seconds
)
def test_the_loss_of_another_process_is_an_error_and_no_hang(parallel, tmp_path, is_early):
    run = command(parallel, tmp_path / "run", "--max-steps", "100000", "--set", "train.log_every=1")
    process = subprocess.Popen(run, env=environment(), stderr=subprocess.PIPE)
    while is_early and not children(process.pid):
        time.sleep(0.01)
    for line in () if is_early else process.stderr:
        if b"step 2 " in line:
            break
    os.kill(children(process.pid)[0], signal.SIGKILL)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert b"a process of this training was killed" in err
    assert b"Traceback" not in err
