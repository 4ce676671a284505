"""Strike one training at every operation in turn, each time in a process of its own.

    python faults_in_training.py FOLDER SRC TGT new|finished|anew HOW:FIRST:STRIDE...

It begins in an empty folder, or in that of a finished run that is given more time, or begun anew. This
process loads everything once and trains once, undisturbed: what comes of that is what must come of every
other training too. Then it forks for N = FIRST, FIRST + STRIDE, …: the child trains and is struck at its Nth
operation on the disk; then the same command is run again. It ends when an N is not reached. HOW is one
of those of `disk.py`; or `limit`: no file may have more than N bytes; or `random`: killed at moments
that the seed FIRST chooses, and started again until it finishes, STRIDE times.

Prints one JSON object with what was done; a broken promise is an AssertionError.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from calls import end, start
from disk import Disk

from cli.app import main
from seq2seq.checkpoint import load_model
from seq2seq.run import Run
from seq2seq.storage import read_published
from tokenizer.errors import UserError

KILLS = ("kill", "tear", "behind", "ahead", "random")
SETTINGS = {
    "model.d_model": 8,
    "model.d_ff": 16,
    "model.n_heads": 2,
    "model.n_encoder_layers": 1,
    "model.n_decoder_layers": 1,
    "model.dropout": 0.1,
    "data.vocab_size": 280,
    "data.batch_tokens": 512,
    "data.holdout": 3,
    "optim.accumulate": 2,
    "optim.lr": 0.01,
    "optim.warmup_steps": 2,
    "train.ema": 0.5,
    "train.max_steps": 7,
    "train.validate_every": 3,
    "train.save_every": 2,
    "train.log_every": 1,
    "train.keep": 1,
    "train.metric": "loss",
    "train.precision": "fp32",
}


FINISHED = {"train.cooldown": 100, "train.max_steps": 10}  # the last two a cooldown
LONGER = {"train.cooldown": 100, "train.max_steps": 15}
NO_BETTER = 9  # updates, after which nothing can be better than what is finished


def arguments(src, tgt, run, settings, *more):
    settings = {**SETTINGS, **settings}
    assigned = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["train", "--src", src, "--tgt", tgt, "-m", str(run), "--threads", "1", *assigned, *more]


def digests(run):
    """What a finished run has learnt: the files of its last checkpoint and state, and which is best."""
    last = run.steps("state")[-1]
    files = [p for f in (run.checkpoint(last), run.state(last)) for p in f.rglob("*")]
    found = {
        str(p.relative_to(run.folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.is_file()
    }
    return found | {name: (run.folder / name).read_bytes().decode() for name in ("best", "latest")}


def check_readers(run, said, taken_back=False):
    """Whoever looks at the folder now finds a whole model or none; what was promised is there."""
    try:
        load_model(run.folder)
    except UserError as error:
        nothing = ("holds no model yet" in str(error)) or ("no such folder" in str(error))
        if said or not nothing:
            raise AssertionError(f"{said} was promised") from error
    for name, checkpoint in said.items():
        load_model(run.named(checkpoint))
        assert run.steps("state"), "a model without a state to go on from"
        assert name != "latest" or taken_back or run.steps("state")[-1] >= int(checkpoint)
    for step in run.steps("state")[-1:]:
        read_published(run.state(step), {"state.json": 1 << 20, "state.safetensors": 1 << 30})


def litter(folder):
    return [str(p) for p in folder.rglob("*") if ".tmp" in p.name]


def named(run):
    """What `best` and `latest` name now."""
    files = [(name, run.folder / name) for name in ("best", "latest")]
    return {name: path.read_bytes().decode().strip() for name, path in files if path.exists()}


def limit(size):
    """Let the system itself refuse files that grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def begin(root):
    """A disk with the run that everything begins with, or an empty one; whether it is finished."""
    shutil.rmtree(root, ignore_errors=True)
    finished = root.with_name("finished")
    if not finished.exists():
        root.mkdir()
        return False
    shutil.copytree(finished, root)
    return True


def check_best(run):
    """The best model is that of the finished run, or one that came later."""
    name = named(run)["best"]
    finished = Run(run.folder.parent.with_name("finished") / "run")
    step = FINISHED["train.max_steps"]
    contents = [
        (folder / "model.safetensors").read_bytes()
        for folder in (run.named(name), finished.checkpoint(step))
    ]
    is_later = name.isdigit() and int(name) > step
    assert is_later or contents[0] == contents[1], f"the finished model is lost: {name}"


def strike(folder, command, how, number, expected):
    """Strike at one operation, look at what is left, and run the command again.

    Returns:
        Whether there was such an operation.
    """
    root, witness, messages = folder / "disk", folder / "said", folder / "messages"
    witness.unlink(missing_ok=True)
    is_anew = "--overwrite" in command
    is_finished = begin(root) and not is_anew
    run = Run(root / "run")
    disk = Disk(root, number, how, witness)
    code = end(start(command, messages, limit(number) if how == "limit" else disk.install))
    message = messages.read_bytes().decode()
    was_struck = witness.exists() or (how == "limit" and code == 2)
    if not was_struck:
        assert code == 0, (code, message)
    elif how not in KILLS:
        assert code in (0, 2), (code, message)
        assert "Traceback" not in message, message
        # The messages lie in a file too, which may not grow either.
        assert how == "limit" or message.count("tfm: error: ") == (code == 2), message
        if not is_anew:
            check_readers(run, named(run), is_finished)
        if how in ("ENOSPC", "limit"):  # what cannot be removed stays: the next run sweeps it
            assert not litter(root), litter(root)
    else:
        assert code == -signal.SIGKILL, (code, message)
        if not is_anew:
            check_readers(run, json.loads(witness.read_bytes()), is_finished)
    if is_anew:
        load_model(run.folder)  # the best one of the old run, or one of the new
    if is_finished:
        check_best(run)
        shorter = [*command, "--set", f"train.max_steps={NO_BETTER}"]
        assert end(start(shorter, messages)) == 0, messages.read_bytes().decode()
        check_best(run)
    again = end(start(command, messages))
    assert again == 0, (again, messages.read_bytes().decode())
    assert digests(run) == expected
    assert not litter(root), litter(root)
    return was_struck


def strike_in_turn(folder, command, how, first, stride, expected, usual):
    """Strike at N = first, first + stride, … until one is not reached."""
    number = first
    try:
        while strike(folder, command, how, number, expected):
            number += stride
    except BaseException:
        sys.stderr.write(f"{how} at operation {number}\n")
        raise
    n_faults = (number - first) // stride
    return n_faults + 1, n_faults


def kill_at_random(folder, command, how, seed, n_rounds, expected, usual):
    """Kill a training again and again, whatever it does just then, until it gets to its end."""
    rng = random.Random(seed)
    n_kills = 0
    for _ in range(n_rounds):
        root = folder / "disk"
        is_finished = begin(root)
        code = -1
        while code:
            child = start(command, folder / "messages")
            time.sleep(rng.uniform(0, usual))
            os.kill(child, signal.SIGKILL)  # of one that has ended, this is no news to anybody
            code = end(child)
            assert code in (0, -signal.SIGKILL), (folder / "messages").read_bytes().decode()
            n_kills += code < 0
            check_readers(Run(root / "run"), named(Run(root / "run")), is_finished)
        assert digests(Run(root / "run")) == expected
        assert end(start(command, folder / "messages")) == 0
        assert not litter(root), litter(root)
    return n_rounds, n_kills


def lost(run, expected):
    """Bytes of a finished run that are not what they must be; 0 where the digests agree."""
    found = digests(run)
    wrong = [name for name in expected if found.get(name) != expected[name]]
    return sum(max(1, (run.folder / name).stat().st_size) for name in wrong)


def strikes(folder, src, tgt, beginning, requests):
    run = Run(folder / "disk" / "run")
    more = ["--overwrite"] if beginning == "anew" else []
    settings = LONGER if beginning == "finished" else {}
    command = arguments(src, tgt, run.folder, settings, *more)
    folder.mkdir(parents=True)
    if beginning != "new":
        begin(run.folder.parent)
        assert main(arguments(src, tgt, run.folder, FINISHED)) == 0
        run.folder.parent.rename(folder / "finished")
    begin(run.folder.parent)
    assert main(command) == 0
    expected = digests(run)
    begin(run.folder.parent)
    begun = time.monotonic()
    assert end(start(command, folder / "messages")) == 0
    usual = time.monotonic() - begun
    assert digests(run) == expected
    done = Counter()
    for request in requests:
        how, first, stride = request.split(":")
        undergo = kill_at_random if how == "random" else strike_in_turn
        cases, faults = undergo(folder, command, how, int(first), int(stride), expected, usual)
        done["cases"] += cases
        done["faults"] += faults
        done["kills"] += faults * (how in KILLS)
        done["lost"] += lost(run, expected)
    sys.stdout.write("\n" + json.dumps(done))


if __name__ == "__main__":
    strikes(Path(sys.argv[1]), *sys.argv[2:5], sys.argv[5:])
