"""What the documents say about the project is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("examples/*/README.md")]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_bytes().decode(), re.MULTILINE)
}


def test_every_test_that_the_promises_name_exists():
    named = re.findall(r"`(test_\w+)`", (ROOT / "RELIABILITY.md").read_bytes().decode())
    assert len(named) > 100
    assert sorted(set(named) - TESTS) == []


def test_every_promise_names_a_test():
    text = (ROOT / "RELIABILITY.md").read_bytes().decode()
    rows = [row for row in text.split("\n") if re.match(r"\| (–|[A-J]\d)", row)]
    assert len(rows) > 60
    assert [row for row in rows if "`test_" not in row] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(d.relative_to(ROOT)) for d in DOCUMENTS])
def test_the_files_that_the_documents_name_exist(path):
    text = path.read_bytes().decode()
    packages = "cli|seq2seq|tokenizer|tests|examples"
    paths = re.findall(rf"(?:{packages})/[\w/]+\.(?:py|sh|md)|tests/[\w/]+/|[A-Z]+\.md", text)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
