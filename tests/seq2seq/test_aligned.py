import gzip
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seq2seq.aligned import check_files, read_pairs
from tokenizer.errors import UserError
from tokenizer.lines import read_lines


@pytest.mark.parametrize(("n_src", "n_tgt"), [(3, 2), (2, 5), (0, 1), (4, 0)])
@pytest.mark.parametrize("packed", [False, True])
def test_different_numbers_of_lines_are_refused_with_both_counts(
    n_src: int, n_tgt: int, packed: bool, tmp_path: Path
) -> None:
    pack, suffix = (gzip.compress, ".gz") if packed else (bytes, "")
    src, tgt = tmp_path / f"s{suffix}", tmp_path / f"t{suffix}"
    src.write_bytes(pack(b"x\n" * n_src))
    tgt.write_bytes(pack(b"x\n" * n_tgt))
    message = rf"{src} has {n_src} lines and {tgt} has {n_tgt}; "
    with pytest.raises(UserError, match=message):
        list(read_pairs([src], [tgt]))
    if not packed:
        with pytest.raises(UserError, match=message):
            check_files([src], [tgt])


def test_files_come_in_pairs(parallel: tuple[Path, Path]) -> None:
    for src, tgt in (([], []), (parallel, parallel[:1])):
        with pytest.raises(UserError, match="give them in pairs"):
            check_files(src, tgt)


def test_pairs_are_added_up_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo\nthree")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"1\n2\n3\n"))
    (tmp_path / "c").write_bytes(b"x\n" * 4)
    a, b, c = (tmp_path / name for name in ("a", "b.gz", "c"))
    assert check_files([a], [b]) == 3
    assert check_files([a, c], [b, c]) == 3 + 4


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="is not a regular file"):
            check_files([path], [path])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing", tmp_path / "missing"
    with pytest.raises(UserError, match=r"missing: cannot be read \(No such file"):
        check_files(missing[:1], missing[1:])


def test_text_that_is_not_utf8_is_refused_by_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_bytes(b"a\nb\n")
    (tmp_path / "b").write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"b: line 2"):
        list(read_pairs([tmp_path / "a"], [tmp_path / "b"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(parts=st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"x", b" ", b"\xef\xbb\xbf"])))
def test_lines_are_counted_as_they_are_read(parts: list[bytes], tmp_path: Path) -> None:
    content = b"".join(parts)
    src, tgt = tmp_path / "counted", tmp_path / "lines"
    src.write_bytes(content)
    tgt.write_bytes(b"x\n" * sum(1 for _ in read_lines(src)))
    check_files([src], [tgt])
