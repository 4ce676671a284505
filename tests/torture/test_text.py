"""Any text at all, drawn by hypothesis: tokenizers and lines give it back."""

import io
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import bpe, spm
from tokenizer.errors import UserError
from tokenizer.files import read_json, write_json
from tokenizer.lines import LineReader, LineWriter
from tokenizer.special import N_SPECIAL

LINES = ["a man in a blue shirt", "ein Mann im blauen Hemd", "1234 ▁ ␛ </s> 你好 💬"] * 10
TOKENIZERS = {"bpe": bpe.train(LINES, 300), "unigram": spm.train(LINES, 300, "unigram")}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
LINE = TEXT.map(lambda text: text.replace("\n", " ").replace("\r", " "))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)
repeatable = settings(max_examples=300, derandomize=True, deadline=None)


@pytest.mark.parametrize("name", TOKENIZERS)
@repeatable
@given(text=TEXT)
def test_any_text_comes_back(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(N_SPECIAL <= i < tokenizer.vocab_size for i in ids)


@repeatable
@given(texts=st.lists(LINE, max_size=20))
def test_any_lines_come_back(texts):
    stream = io.BytesIO()
    writer = LineWriter(stream)
    for text in texts:
        writer.write(text)
    writer.flush()
    assert stream.getvalue().count(b"\n") == len(texts)
    expected = [text.removeprefix("\ufeff") if i == 0 else text for i, text in enumerate(texts)]
    assert read(stream.getvalue()) == expected


@repeatable
@given(data=st.binary(max_size=200))
def test_any_bytes_are_as_many_lines_as_they_have_line_feeds(data):
    data = b"text\n" + data  # neither packed nor UTF-16
    assert len(read(data)) == data.count(b"\n") + (not data.endswith(b"\n"))


@repeatable
@given(document=JSON)
def test_any_document_comes_back(document):
    assert read_json(write_json(document), "x") == document


@repeatable
@given(data=st.binary(max_size=50) | TEXT.map(str.encode))
def test_any_bytes_are_json_or_an_error_for_the_user(data):
    try:
        document = read_json(data, "x")
    except UserError:
        return
    assert read_json(write_json(document), "x") == document


def read(data):
    """The lines of some bytes, as `tfm translate` reads them."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return [line for window in LineReader(file, "x").windows(7) for line in window]
