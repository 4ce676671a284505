import subprocess
import sys

ENTRY = "from cli.entry import main; sys.exit(main())"
INTERRUPTED = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
{ENTRY}
"""


def test_an_interrupt_while_the_commands_are_loaded_is_silent():
    result = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


def test_the_installed_command_begins_here():
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {ENTRY}", "--version"], capture_output=True
    )
    assert (result.returncode, result.stdout[:4]) == (0, b"tfm ")
