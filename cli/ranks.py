"""More processes of the same command, which train together with this one on the cores of this machine.

The products of a small model are too small for several threads: they wait for one another after
each, and on a busy machine for long. Processes with one thread each wait once an update. Each has weights
and optimizer of its own, 24 bytes a parameter.
They are those that torchrun would start (`seq2seq/distributed.py`); here no torchrun is needed.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import typer

from cli.streams import complain
from tokenizer.errors import UserError

_OF_ONE_PROCESS = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|thread-self)/fd/\d+")
_GRACE = 10.0  # seconds that the others have to end after this process is done
_FAILED = "another process of this training could not go on; it said why above"
_LOST = (
    "a process of this training was killed, perhaps for lack of memory; "
    "run the same command again to go on, or with --threads 1"
)
_FOLLOW = """
import sys
from cli.app import main
from cli.ranks import end_with_parent
end_with_parent()
sys.exit(main(sys.argv[1:]))
"""


def useful_processes(threads: int, d_model: int, n_micro: int) -> int:
    """How many processes share the work best.

    >>> useful_processes(threads=8, d_model=128, n_micro=4)
    4
    >>> useful_processes(threads=8, d_model=1024, n_micro=4)
    1

    Args:
        threads: That may be used in all.
        d_model: Width of the model; a wide one keeps several threads of one process busy.
        n_micro: Micro-batches in an update, shared out evenly.
    """
    if d_model > 512:
        return 1
    return max(n for n in range(1, threads + 1) if n_micro % n == 0)


def check_names(files: Iterable[Path]) -> None:
    """Refuse names that mean another file to each process, such as /dev/stdin.

    Raises:
        UserError: Naming the first of them.
    """
    for path in files:
        if _OF_ONE_PROCESS.fullmatch(str(path)):
            raise UserError(
                f"{path}: may be another file to each process of a training, and is read more than once; "
                "save it to a file, or give a file by its own name"
            )


@contextlib.contextmanager
def companions(n_processes: int, arguments: Sequence[str], threads: int) -> Iterator[None]:
    """Start n - 1 more processes with the same arguments, and make this one the first of all.

    They end when this process ends, however it ends, and it ends when one of them is lost. Where
    this machine cannot even talk to itself, the process stays alone.

    Args:
        n_processes: How many, this one included; with 1 nothing happens.
        arguments: Of the command that they run.
        threads: That each of them uses, whatever the arguments say.

    Raises:
        UserError: When one of them was killed, or found something wrong that the user can mend; what
            was saved is there still.
    """
    from seq2seq.distributed import MEETING

    place = _meeting_place() if n_processes > 1 else None
    if place is None:
        yield
        return
    world = {
        "WORLD_SIZE": str(n_processes),
        "LOCAL_WORLD_SIZE": str(n_processes),
        MEETING: str(place / "meeting"),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    before = dict(os.environ)
    processes: list[subprocess.Popen[bytes]] = []
    is_over = threading.Event()
    try:
        for rank in range(1, n_processes):
            environment = {**before, **world, "OMP_NUM_THREADS": str(threads)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", _FOLLOW, *arguments],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the first process, which tells the others
                )
            )
        for process in processes:
            threading.Thread(target=_end_with, args=[process, is_over, place], daemon=True).start()
        os.environ.update(world, RANK="0", LOCAL_RANK="0")
        yield
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
    except typer.Exit:  # said already; a RuntimeError, too
        raise
    except RuntimeError as error:  # what PyTorch raises when it cannot reach another process
        ends = [_end(process) for process in processes]
        if min(ends) < 0:
            raise UserError(_LOST) from error
        if 2 in ends:  # something that the user can fix
            raise UserError(_FAILED) from error
        raise
    finally:
        is_over.set()
        for process in processes:
            process.kill()
            process.communicate()  # closes its standard input, too
        shutil.rmtree(place, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


def _end_with(process: subprocess.Popen[bytes], is_over: threading.Event, place: Path) -> None:
    """End this process too if it waits in vain for one that is gone, as nothing else wakes it then."""
    code = process.wait()
    if code != 0 and not is_over.wait(_GRACE):
        complain(_LOST if code < 0 else _FAILED)
        shutil.rmtree(place, ignore_errors=True)
        os._exit(1 if code == 1 else 2)


def _end(process: subprocess.Popen[bytes]) -> int:
    """How a process ended, 0 if it has not; connections close a moment before it is gone."""
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:
        return 0


def end_with_parent() -> None:
    """From now on, end when the process that started this one ends, and remove what it left.

    It holds the other end of our standard input open as long as it lives.
    """
    from seq2seq.distributed import MEETING

    place = Path(os.environ[MEETING]).parent

    def wait() -> None:
        while os.read(0, 1):
            pass
        shutil.rmtree(place, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _meeting_place() -> Path | None:
    """A folder of this user alone, for processes to find one another; None where they cannot talk."""
    place = None
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=1).close()
        place = Path(tempfile.mkdtemp(prefix="tfm-"))
        (place / "room").write_bytes(bytes(1 << 16))  # there is space enough
    except OSError:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        return None
    return place
