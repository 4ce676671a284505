"""Models from anywhere: whatever is in the folder, nothing runs, nothing explodes, the file is named."""

from pathlib import Path

import pytest

FIRST_FORMAT = Path(__file__).parent.parent / "data" / "format_1"


@pytest.fixture
def tamper(program, tmp_path, tally):
    """Try so many cases in each of several processes, with seeds from the given one on."""

    def run(seed, n_cases, n_processes=1):
        folders = [tmp_path / str(i) for i in range(n_processes)]
        for folder in folders:
            folder.mkdir()
        commands = [(FIRST_FORMAT, f, seed + i, n_cases) for i, f in enumerate(folders)]
        for done in program("hostile_models", *commands):
            assert done["refused"] > 0.4 * n_cases
            tally["cases tried"] += done["cases"]
            tally["faults injected"] += done["cases"]

    return run


def test_a_model_that_was_tampered_with_is_refused_by_name(tamper):
    tamper(1, 40)


@pytest.mark.torture
def test_models_that_were_tampered_with_are_refused_by_name(tamper):
    tamper(100, 1000, n_processes=2)
