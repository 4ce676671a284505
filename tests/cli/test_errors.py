import errno
import subprocess
import sys
import tempfile

import pytest
import torch

from cli.errors import enough_memory, exit_code
from tokenizer.errors import UserError


def test_a_lack_of_memory_is_an_error_that_says_how_much_and_what_to_do():
    with (
        pytest.raises(UserError, match=rf"tried to allocate {1 << 60} bytes.*; buy more"),
        enough_memory("buy more"),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="must match"), enough_memory("buy more"):
        torch.ones(2) + torch.ones(3)


def test_no_place_for_temporary_files_is_no_bug(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr("tempfile.tempdir", None)
    assert exit_code(lambda: len(tempfile.gettempdir())) == 2
    assert "temporary files have no place" in capsys.readouterr().err


def test_other_failures_of_the_system_without_a_name_are_bugs(capsys):
    def fail():
        raise OSError(errno.EBADF, "Bad file descriptor")

    assert exit_code(fail) == 1
    assert "this is a bug in tfm" in capsys.readouterr().err


def test_numpy_is_loaded_before_pytorch_which_would_drop_a_signal_meanwhile(tmp_path):
    program = """
import sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("numpy" in sys.modules, file=sys.stderr)
sys.meta_path.insert(0, Watch())
from cli.app import main
main(["translate", "-m", "nowhere"])
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
    assert result.stderr.startswith(b"True\n")
