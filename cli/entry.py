"""Where a process of `tfm` begins: an interrupt is silent from the first moment on."""


def main() -> int:
    """Run the command of this process; returns its exit code."""
    try:
        from cli.app import main

        return main()
    except KeyboardInterrupt:  # while the commands themselves were being loaded
        return 130
