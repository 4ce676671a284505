"""What ends a command becomes a message and an exit code.

    code = exit_code(lambda: run(arguments))
    code = explained(error)                       of one that was caught already
    with enough_memory("choose a smaller one"):   a lack of it is a mistake, too

A mistake that the user can fix is one line, a bug in tfm a traceback. Of several processes that find the
same wrong one speaks.
"""

import contextlib
import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from cli.streams import complain
from tokenizer.errors import UserError

_PRECEDENCE = 5.0  # seconds that the first of several processes has to say what is wrong


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: what was begun is cleaned up on the way out."""


def exit_code(action: Callable[[], int]) -> int:
    """Do something; say what it raises, and turn that into an exit code."""
    try:
        return action()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return explained(error)


def explained(error: BaseException) -> int:
    """Say what went wrong; returns the exit code."""
    match error:
        case UserError():
            return _mistaken(str(error))
        case BrokenPipeError():
            return 141
        case OSError():
            return _refused(error)
        case MemoryError():
            return _mistaken("out of memory; a line or a file may be far longer than any text")
        case KeyboardInterrupt():
            return 130
        case Terminated():
            return 143
        case _:
            return _bug(error)


@contextlib.contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn a lack of memory into an error for the user.

    Raises:
        UserError: Ending in `advice`.
    """
    from seq2seq.hardware import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        wanted = re.search(r"[Tt]ried to allocate \S+ \w+", str(error))
        how_much = f" ({wanted[0].lower()})" if wanted else ""
        raise UserError(f"not enough memory{how_much}; {advice}") from None


def _mistaken(message: str) -> int:
    """Say what the user can fix."""
    if _is_for_us_to_say():
        complain(message)
    return 2


def _refused(error: OSError) -> int:
    """What the system says about a name that was given to it, the user can do something about."""
    if error.errno == errno.ENOENT and "temporary directory" in str(error):  # Python's own words
        return _mistaken(
            f"{error.strerror}: temporary files have no place; free some space, or let TMPDIR name a "
            "folder that can be written"
        )
    if error.filename is None or isinstance(error.filename, int):
        return _bug(error)
    return _mistaken(f"{os.fsdecode(error.filename)}: cannot be used ({error.strerror})")


def _bug(error: BaseException) -> int:
    if _is_for_us_to_say():
        trace = "".join(traceback.format_exception(error))
        sys.stderr.write(f"{trace}tfm: this is a bug in tfm; please report it\n")
    return 1


def _is_for_us_to_say() -> bool:
    """Whether no other process of this machine has said what is wrong, as the first ends the others."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        try:
            time.sleep(_PRECEDENCE)
        except (Terminated, KeyboardInterrupt):
            return False
    return True
