import os
import resource
import signal
import subprocess
import sys
import time

import pytest

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_translation_that_is_ended_leaves_nothing_behind(entry, model, tmp_path, number):
    out = tmp_path / "out"
    out.write_bytes(b"old")
    command = [*entry, "translate", "-m", str(model), "-o", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"a dog\n")
        process.stdin.flush()
        while not list(tmp_path.glob(".tmp-*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        err = process.stderr.read()
    assert (process.returncode, err) == (143, b"")
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_signal_that_is_ignored_stays_ignored(entry, model, tmp_path):
    command = [*entry, "translate", "-m", str(model), "-o", str(tmp_path / "out")]

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does

    with subprocess.Popen(command, stdin=subprocess.PIPE, preexec_fn=ignore) as process:
        while not list(tmp_path.glob(".tmp-*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        process.communicate(b"a dog\n")
    assert process.returncode == 0
    assert (tmp_path / "out").read_bytes().count(b"\n") == 1


def little_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("export -m MODEL --to safetensors -o exported", "exported: could not be written"),
        ("average MODEL -o mean", "mean: could not be written"),
        ("train-tokenizer TEXT -m run", "run/tokenizer: could not be written"),
    ],
)
def test_what_cannot_be_written_is_named_as_the_user_did(
    entry, model, parallel, tmp_path, arguments, named
):
    places = {"MODEL": str(model), "TEXT": str(parallel[0])}
    words = [places.get(word, word) for word in arguments.split()]
    result = subprocess.run(
        [*entry, *words],
        cwd=tmp_path,
        capture_output=True,
        preexec_fn=little_disk,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"tfm: error: {named}".encode())
    assert not any(tmp_path.iterdir())
