"""What was tried, counted, and shown at the end as a table."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROWS = ("cases tried", "faults injected", "kills survived", "lines streamed", "bytes lost")
collect_ignore = [path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")]
TALLY = pytest.StashKey[Counter]()
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(LINUX)


@pytest.fixture(scope="session")
def tally(request):
    """Counts, by the names in ROWS; those of all tests are added."""
    return request.config.stash.setdefault(TALLY, Counter())


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # of pytest-xdist, whose first process shows all
        session.config.workeroutput["torture"] = dict(session.config.stash.get(TALLY, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    counts = getattr(node, "workeroutput", {}).get("torture", {})
    node.config.stash.setdefault(TALLY, Counter()).update(counts)


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash.get(TALLY, None)
    if counts:
        terminalreporter.section("torture")
        for row in ROWS:
            terminalreporter.write_line(f"{row:16} {counts[row]:>9,}")


@pytest.fixture
def program():
    """Start one of the programs in this folder; wait for it and read what it did."""

    def start(name, *arguments):
        command = [sys.executable, str(HERE / f"{name}.py"), *map(str, arguments)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=quiet()
        )

    def wait(*processes):
        outputs = [process.communicate() for process in processes]
        for process, (_, err) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, err.decode()[-5000:]
        return [json.loads(out.split(b"\n")[-1]) for out, _ in outputs]

    return lambda name, *lists: wait(*(start(name, *arguments) for arguments in lists))


def quiet():
    """The environment of a program: one thread, and no model that a developer works with."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {name: value for name, value in environment.items() if name != "TFM_MODEL"}
