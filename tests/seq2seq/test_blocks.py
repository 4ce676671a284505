from pathlib import Path

import numpy as np
import pytest

from seq2seq.blocks import CorpusReport, Text
from seq2seq.corpus import open_corpus
from tokenizer.base import Tokenizer

LINES = [f"{i} dog" if i % 7 else "" for i in range(3000)]


@pytest.fixture
def text(small_tokenizer: Tokenizer, tmp_path: Path) -> Text:
    files = [tmp_path / name for name in ("a.src", "a.tgt", "b.src", "b.tgt")]
    for path in files:
        path.write_bytes("".join(f"{line}\n" for line in LINES).encode())
    return Text(files[0::2], files[1::2], small_tokenizer, 5)


def test_blocks_are_in_order_and_hold_all_lines(text: Text) -> None:
    blocks = list(text.blocks())
    assert [block.part for block in blocks] == sorted(block.part for block in blocks)
    expected = "".join(f"{line}\n" * 2 for line in LINES * 2).encode()
    assert b"".join(block.text for block in blocks) == expected
    assert b"".join(text.lines()) == expected
    for block in blocks:
        assert len(block.ids) == block.sizes.sum()
        assert len(block.sizes) == block.report.n_pairs


def test_what_is_found_in_blocks_adds_up(text: Text, tmp_path: Path) -> None:
    total = sum((block.report for block in text.blocks()), CorpusReport())
    corpus = open_corpus(text, tmp_path / "data")
    assert total == corpus.report
    assert min(total.n_pairs, total.n_empty, total.n_too_long) > 0
    assert total.n_lines == total.n_pairs + total.n_empty + total.n_too_long == 6000
    longest = max(len(text.tokenizer.encode(line)) for line in LINES)
    assert total.longest == longest


def test_tags_stand_before_the_sources_of_their_files(text: Text) -> None:
    tagged = Text(text.src, text.tgt, text.tokenizer, text.max_len, tags=(5, 6))
    for block in tagged.blocks():
        firsts = block.sizes.sum(axis=1).cumsum() - block.sizes.sum(axis=1)
        assert (block.ids[firsts] == tagged.tags[block.part]).all()
    plain = np.concatenate([block.ids for block in text.blocks()])
    assert len(plain) > 0
    assert tagged.origin() != text.origin()
