"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """A mistake that the user can fix.

    The message says *where* (file, line, option or value), *what*, and *what to do* when that is
    known: `data/train.de: line 4102: not UTF-8 (byte 0xff at column 17)`. The command line prints
    it as one line, `tfm: error: ...`, and exits with 2. Any other exception is a bug in tfm.
    """
