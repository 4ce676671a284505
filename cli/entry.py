"""Where a process of `tfm` begins: what signals mean holds from the first moment on."""

import signal
import sys


def main() -> int:
    """Run the command of this process; returns its exit code."""
    if sys.argv[1:2] == ["train"]:  # asks to save, and there is nothing to save yet
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        from cli.app import main

        return main()
    except KeyboardInterrupt:  # silently, also while the commands themselves were being loaded
        return 130
