import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.app import app, main

COMMANDS = [
    "train-tokenizer",
    "encode",
    "decode",
    "train",
    "translate",
    "evaluate",
    "score",
    "average",
    "export",
    "info",
]


def test_help_lists_every_command(tfm):
    result = tfm("--help")
    assert result.code == 0
    listed = [
        line.split()[0]
        for line in result.out.decode().partition("Commands:\n")[2].split("\n")
        if line
    ]
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(tfm, command):
    result = tfm(command, "-h")
    assert result.code == 0
    options = result.out.decode().partition("Options:\n")[2]
    words = [entry.split(maxsplit=3) for entry in options.split("\n  -")]
    assert all(len(entry) > 2 for entry in words)


def test_without_arguments_the_help_is_shown(tfm):
    assert tfm().out == tfm("--help").out


def test_version_is_that_of_the_package(tfm):
    result = tfm("--version")
    assert result.code == 0
    assert result.out.startswith(b"tfm ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no-such-command"], "no-such-command"),
        (["--no-such-option"], "--no-such-option"),
        (["translate", "--beam-sise", "3"], "--beam-size"),
        (["translate", "--beam-size", "many"], "--beam-size"),
        (["translate", "--beam-size"], "--beam-size"),
        (["train"], "--src"),
        (["average", "folder"], "--output"),
        (["translate", "--threads", "0"], "--threads"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_mistake(tfm, arguments, named):
    result = tfm(*arguments)
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("tfm: error: ")
    assert result.err.count("\n") == 1
    assert named in result.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "--ref", "a", "--ref", "b", "--hyp", "h"], "--ref"),
        (["evaluate", "--ref=a", "--hyp", "h", "--ref=a"], "--ref"),
        (["evaluate", "-ma", "--model", "b", "--src", "s", "--ref", "r"], "-m/--model"),
        (["score", "--src", "a", "--tgt", "b", "--tgt", "c"], "--tgt"),
    ],
)
def test_an_option_for_one_value_is_given_once_where_numbers_follow(
    tfm, tmp_path, arguments, named
):
    result = tfm(*arguments)
    assert (result.code, result.out) == (2, b"")
    assert result.err == f"tfm: error: {named}: is given twice; give it once\n"
    assert not any(tmp_path.iterdir())


def test_options_for_several_values_and_flags_may_be_given_again(tfm, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"a dog\n")
    options = ["--ref", "a", "--hyp", "a", "--hyp", "b", "--json", "--json"]
    result = tfm("evaluate", *options)
    assert result.code == 0
    assert b'"b"' in result.out


def test_help_comes_before_mistakes(tfm):
    assert tfm("evaluate", "--ref", "a", "--ref", "b", "--help").code == 0


def test_control_characters_in_messages_are_escaped(tfm):
    result = tfm("translate", "evil\x1b[31m\nname")
    assert result.code == 2
    assert r"evil\x1b[31m\nname" in result.err
    assert result.err.count("\n") == 1


@pytest.fixture
def crash() -> Callable[[BaseException], None]:
    """Add a command `crash` that raises what it is told to."""

    def set_up(error: BaseException) -> None:
        @app.command("crash")
        def crash() -> None:
            raise error

    yield set_up
    app.registered_commands.pop()


def test_an_unexpected_exception_is_a_bug_with_a_traceback(tfm, crash):
    crash(RuntimeError("boom"))
    result = tfm("crash")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "RuntimeError: boom" in result.err


def test_a_line_without_end_is_no_bug(tfm, crash):
    crash(MemoryError())
    result = tfm("crash")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "out of memory" in result.err


def test_an_interrupt_is_quiet(tfm, crash):
    crash(KeyboardInterrupt())
    result = tfm("crash")
    assert (result.code, result.out, result.err) == (130, b"", "")


def test_the_command_line_is_there_before_anything_heavy_is_loaded():
    heavy = "torch", "numpy", "tokenizers", "sentencepiece", "sacrebleu", "rich"
    program = (
        "import sys; from cli.app import main; main(['--help']);"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.endswith(b"\n[]\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["translate", "-m", "x" * 300],
        ["translate", "-o", "x" * 300],
        ["info", "-m", "x" * 300],
        ["average", "model", "-o", "x" * 300],
        ["train-tokenizer", "text", "-m", "x" * 300],
        ["train", "--src", "text", "--tgt", "text", "-m", "x" * 300],
    ],
)
def test_a_name_that_the_system_refuses_is_no_bug(tfm, arguments):
    Path("text").write_bytes(b"a\n")
    result = tfm(*arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "x" * 300 in result.err


@pytest.mark.parametrize("command", ["translate", "train --src a --tgt b"])
def test_more_threads_than_any_machine_has_are_refused(tfm, command):
    result = tfm(*command.split(), "--threads", 10**12)
    assert result.code == 2
    assert "--threads" in result.err


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


def test_signals_that_come_after_another_change_nothing(entry, model):
    command = [*entry, "encode", "-m", str(model)]
    for pause in (0.0, 0.001):
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            process.stdin.write(b"a dog\n")
            process.stdin.flush()
            process.stdout.readline()  # it is at work by now
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
                process.send_signal(number)
                time.sleep(pause)
            try:
                process.wait(30)
            finally:
                process.kill()
            err = process.stderr.read()
        assert (process.returncode, err) == (143, b"")


def test_a_signal_to_save_does_not_end_a_training_that_has_not_begun():
    code = """
import os, signal, sys
sys.argv[1:] = ["train", "--help"]
from cli import app, entry
app.main = lambda: os.kill(os.getpid(), signal.SIGUSR1)
sys.exit(entry.main())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


def test_an_empty_argument_is_refused(tfm):
    result = tfm("info", "-m", "")
    assert result.code == 2
    assert "one argument is empty" in result.err


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


@pytest.mark.parametrize(("command", "kept"), [("train", "64"), ("translate", "200")])
def test_training_keeps_fewer_compiled_products(command, kept, monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    del os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]
    assert main([command, "--help"]) == 0
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == kept


@pytest.mark.parametrize("command", [["translate"], ["info", "--plot", "x.svg"], ["info"]])
def test_a_current_folder_that_is_gone_is_said_to_be(entry, model, tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, subprocess, sys; os.rmdir(os.getcwd()); sys.exit(subprocess.call(sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *entry, *command, "-m", model],
        cwd=gone,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith(b"tfm: error: the current folder does not exist any more")
