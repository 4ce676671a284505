"""Call the command many times from one process that has loaded everything: a fork for each call."""

import os
import resource
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cli.app import main


@dataclass(frozen=True)
class Result:
    """How a call ended: its exit code (negative: a signal), what it wrote, seconds of processor."""

    code: int
    out: bytes
    err: str
    seconds: float


def start(arguments, messages, before=None, stdin=os.devnull, output=os.devnull):
    """Fork; the child runs the command.

    Args:
        arguments: Of the command.
        messages: The file that standard error goes to.
        before: Called in the child first.
        stdin: The file that is standard input.
        output: The file that standard output goes to.

    Returns:
        The child's process id.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            for number, path in enumerate((stdin, output, messages)):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                os.dup2(os.open(path, flags), number)
            if before is not None:
                before()
            code = main([str(argument) for argument in arguments])
        finally:
            os._exit(code)
    return child


def end(child):
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def call(arguments, stdin=b"", more_memory=1 << 30, limit=60):
    """Run a command that may take so much memory more than this process has, and so many seconds."""

    def bound():
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        most = pages * resource.getpagesize() + more_memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(limit)  # nobody handles it: a call that hangs is killed

    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (Path(folder, name) for name in ("in", "out", "err"))
        given.write_bytes(stdin)
        child = start(arguments, err, bound, given, out)
        _, status, usage = os.wait4(child, 0)
        return Result(
            os.waitstatus_to_exitcode(status),
            out.read_bytes(),
            err.read_bytes().decode(),
            usage.ru_utime + usage.ru_stime,
        )
