"""`tfm train --verify-resume`: a run that was killed ends as one that was not, to the byte.

Real runs of the same command, in a temporary folder: one goes through, another is killed where it hurts and
started again. Both must leave the same files: SHA-256 of each is compared.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer

from cli.streams import say
from seq2seq.config import RunConfig, write_toml
from seq2seq.run import Run
from tokenizer.errors import UserError

_STEPS = 6  # updates of each run
_SAVE = 3  # updates between saves
# Not for runs that are to be resumed, and what would end the options of a command without arguments.
_NOT_PASSED = ("--verify-resume", "--overwrite", "--")
_TFM = "import sys; from cli.app import main; sys.exit(main())"
_SMALL = {  # what makes the runs short; all that is computed stays as it was asked for
    "train.save_every": _SAVE,
    "train.validate_every": _STEPS,
    "train.log_every": 1,
    "data.holdout": 16,
}
_DIFFERENT = _NOT_FINITE = 3  # exit codes
_LOOK = 0.001  # seconds between two looks at a run that is to be killed


def verify_resume(arguments: Sequence[str], run: Path, config: RunConfig, precision: str) -> int:
    """Prove, on this machine and with these settings, that resuming changes nothing.

    Writes the hashes to standard output. The folder of the run is only read: its tokenizer and its
    store of ids are used where there are any.

    Args:
        arguments: Of the command, as they were given.
        run: The folder of the run.
        config: Its settings, as far as they are known before it begins.
        precision: What it computes in; measured once, it goes for all runs.

    Returns:
        The exit code: 0 if all files are equal.

    Raises:
        UserError: As the command itself, or when a run ended before it could be killed.
    """
    with tempfile.TemporaryDirectory(prefix="tfm-verify-") as name:
        through, killed = Path(name, "through"), Path(name, "killed")
        # For so short a run the preset would decide otherwise.
        settings = Path(name, "settings.toml")
        settings.write_bytes(write_toml(config))
        arguments = [*arguments, "--config", str(settings), "--precision", precision]
        say(f"1 of 2: {_STEPS} updates without a stop, in {name}")
        _share(run, through)
        with _started(_command(arguments, through), Path(name, "stderr")) as process:
            process.wait()
        _check_ended(process.returncode, Path(name, "stderr"))

        say(f"2 of 2: the same, saving after {_SAVE}, killed twice (SIGKILL) and started again")
        _share(through, killed)
        command = _command(arguments, killed)
        for when, has_come in _moments(Run(killed)):
            with _started(command, Path(name, "stderr")) as process:
                while process.poll() is None and not has_come():
                    time.sleep(_LOOK)
            _check_ended(max(process.returncode, 0), Path(name, "stderr"))
            if process.returncode == 0:
                raise UserError(f"--verify-resume: the run was over before it was killed {when}")
            say(f"killed {when}")
        with _started(command, Path(name, "stderr")) as process:
            process.wait()
        _check_ended(process.returncode, Path(name, "stderr"))
        return compare(through, killed)


def _command(arguments: Sequence[str], run: Path) -> list[str]:
    """The command of a short run; of an option that is given twice the last one counts."""
    kept = [argument for argument in arguments if argument not in _NOT_PASSED]
    short = ["-m", str(run), "--max-steps", str(_STEPS), "--max-epochs", str(10**6)]
    short += ["--max-time", "9d"]
    for name, value in _SMALL.items():
        short += ["--set", f"{name}={value}"]
    return [sys.executable, "-P", "-c", _TFM, *kept, *short]


@contextlib.contextmanager
def _started(command: Sequence[str], stderr: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone at the end, whatever happens."""
    with (
        stderr.open("wb") as file,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _check_ended(code: int, stderr: Path) -> None:
    """Pass the complaint of a run on."""
    if code == 0:
        return
    lines = stderr.read_bytes().decode(errors="replace").split("\n")
    error = next((line for line in reversed(lines) if line.startswith("tfm: error: ")), None)
    if error is not None and code == _NOT_FINITE:
        say(error)
        raise typer.Exit(code)
    if error is not None:
        raise UserError(error.removeprefix("tfm: error: "))
    raise RuntimeError(f"tfm train ended with {code}:\n" + "\n".join(lines[-30:]))


def _moments(run: Run) -> Iterator[tuple[str, Callable[[], bool]]]:
    """When to kill: in words, and whether it has come."""
    states, log = run.state(_SAVE).parent, run.log
    yield f"while step {_SAVE} was being saved", lambda: any(states.glob("*"))

    of_killed = log.stat().st_ino  # the run that goes on writes a log of its own

    def has_logged() -> bool:
        is_new = log.stat().st_ino != of_killed
        return is_new and f'"step": {_SAVE + 1},'.encode() in log.read_bytes()

    yield f"after update {_SAVE + 1}, which was not saved", has_logged


def _share(old: Path, new: Path) -> None:
    """Give a new run the tokenizer and the ids of another, whose files never change once they are there."""
    for there, here in zip(*((Run(f).tokenizer, Run(f).data) for f in (old, new)), strict=True):
        if there.is_dir():
            shutil.copytree(there, here, copy_function=_link)


def _link(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except OSError:  # another file system
        shutil.copy(old, new)


def compare(through: Path, killed: Path) -> int:
    """Write the hashes of two runs to standard output.

    Args:
        through: The run that was not interrupted.
        killed: The one that was.

    Returns:
        The exit code: 0 if the last checkpoint and its state are equal, 3 if a file differs.
    """
    one, two = _hashes(through), _hashes(killed)
    different = sorted(n for n in one.keys() | two.keys() if one.get(n) != two.get(n))
    for name, digest in sorted(one.items()):
        sys.stdout.write(f"{digest}  {name}\n")
    for name in different:
        sys.stdout.write(f"{two.get(name, 'missing'):64}  {name} (killed and resumed)\n")
    sys.stdout.write("different\n" if different else "equal\n")
    if different:
        say(f"resuming is not exact here: {', '.join(different)}")
        return _DIFFERENT
    say(f"resuming is exact here: {len(one)} files are the same with and without being killed")
    return 0


def _hashes(run: Path) -> dict[str, str]:
    """SHA-256 of every file of the last checkpoint, and of the state that goes with it."""
    folders = [Run(run).checkpoint(_STEPS), Run(run).state(_STEPS)]
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }
