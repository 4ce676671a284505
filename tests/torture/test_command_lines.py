"""Command lines that nobody would write: an exit code and a line, never a traceback."""

from pathlib import Path

import pytest

FIRST_FORMAT = Path(__file__).parent.parent / "data" / "format_1"


@pytest.fixture
def try_out(program, parallel, tmp_path, tally):
    """Try so many command lines in each of several processes, with seeds from the given one on."""

    def run(seed, n_cases, n_processes=1):
        folders = [tmp_path / str(i) for i in range(n_processes)]
        for folder in folders:
            folder.mkdir()
        commands = [(FIRST_FORMAT, *parallel, f, seed + i, n_cases) for i, f in enumerate(folders)]
        for done in program("command_lines", *commands):
            assert done["codes"].keys() >= {"0", "2"}
            tally["cases tried"] += done["cases"]

    return run


def test_some_command_lines_end_with_a_code_and_a_line(try_out):
    try_out(1, 40)


@pytest.mark.torture
def test_many_command_lines_end_with_a_code_and_a_line(try_out):
    try_out(100, 1000, n_processes=2)
