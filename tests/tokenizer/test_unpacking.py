import bz2
import contextlib
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from tokenizer.errors import UserError
from tokenizer.lines import (
    LineReader,
    count_lines,
    read_lines,
)
from tokenizer.unpacking import Unpacked

PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def file_of(folder: Path, data: bytes, name: str = "corpus.en") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_corpora_are_unpacked(suffix: str, tmp_path: Path) -> None:
    lines = [f"line {i} ä" for i in range(40_000)]
    data = "\n".join(lines).encode()
    path = file_of(tmp_path, PACK[suffix](data[:1000]) + PACK[suffix](data[1000:]), "c" + suffix)
    assert list(read_lines(path)) == lines


@pytest.mark.parametrize("suffix", PACK)
def test_the_end_of_a_name_may_be_in_capitals(suffix: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, PACK[suffix](b"a\nb\n"), "CORPUS" + suffix.upper())
    assert list(read_lines(path)) == ["a", "b"]


@pytest.mark.parametrize("suffix", PACK)
def test_what_is_packed_without_its_name_saying_so_is_refused(suffix: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, PACK[suffix](b"a\nb\n"))
    for read in (
        read_lines,
        count_lines,
        lambda path: LineReader(io.BytesIO(path.read_bytes()), str(path)).windows(9),
    ):
        with pytest.raises(UserError, match=f"corpus.en: is compressed; .* ends in {suffix}"):
            list(read(path))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_an_archive_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\ntwo\n")
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "text")
    else:
        with tarfile.open(path, f"w:{path.suffix[1:] if path.suffix != '.tar' else ''}") as packed:
            packed.add(tmp_path / "text", "text")
    for read in (read_lines, lambda path: LineReader(Unpacked(path), str(path)).windows(9)):
        with pytest.raises(UserError, match=f"{name}: is an archive; take the text out of it"):
            list(read(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(encoding: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, "\ufeffa\nb\n".encode(encoding))
    with pytest.raises(UserError, match=r"corpus\.en: is UTF-16; convert it to UTF-8"):
        list(read_lines(path))


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "not an archive"])
def test_broken_archive_is_named(suffix: str, damage: str, tmp_path: Path) -> None:
    packed = PACK[suffix](os.urandom(5000).hex().encode())
    data = {"truncated": packed[:-100], "emptied": b"", "not an archive": b"plain text\n" * 20}
    path = file_of(tmp_path, data[damage], "corpus" + suffix)
    ended = "" if damage == "not an archive" else "ompressed file ended before"
    for read in (read_lines, count_lines, lambda path: LineReader(Unpacked(path), path).windows(9)):
        with pytest.raises(UserError, match=f"corpus{suffix}: .*{ended}"):
            list(read(path))


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "garbage"])
def test_damage_behind_the_first_member_is_named(suffix: str, damage: str, tmp_path: Path) -> None:
    pack = PACK[suffix]
    first, second = pack(b"a\nb\n"), pack(b"c\nd\n")
    flipped = bytes([second[0] ^ 1]) + second[1:]
    data = {"flipped": flipped, "truncated": second[:-1], "garbage": second + b"more"}
    path = file_of(tmp_path, first + data[damage], "corpus" + suffix)
    for read in (read_lines, count_lines, lambda path: LineReader(Unpacked(path), path).windows(9)):
        with pytest.raises(UserError, match=f"corpus{suffix}: cannot be read"):
            list(read(path))


@pytest.mark.parametrize("n_padding", [4, 200_000])
def test_padding_of_xz_is_passed_over(n_padding: int, tmp_path: Path) -> None:
    padding = bytes(n_padding)
    data = lzma.compress(b"a\n") + padding + lzma.compress(b"b\n") + padding
    assert list(read_lines(file_of(tmp_path, data, "corpus.xz"))) == ["a", "b"]


@pytest.mark.parametrize("data", [bytes(3), bytes(5), bytes(6) + lzma.compress(b"b\n")])
def test_padding_of_xz_has_a_multiple_of_four_bytes(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list(read_lines(file_of(tmp_path, lzma.compress(b"a\n") + data, "corpus.xz")))


@pytest.mark.parametrize("suffix", [".xz", ".bz2"])
def test_archive_is_unpacked_piece_by_piece(suffix: str, tmp_path: Path) -> None:
    data = PACK[suffix](bytes(20_000_000))
    path = file_of(tmp_path, data + data, "corpus" + suffix)
    sizes = []
    with contextlib.closing(Unpacked(path)) as stream:
        while block := stream.read():
            sizes.append(len(block))
    assert sum(sizes) == 40_000_000
    assert max(sizes) <= 1 << 20


def test_empty_archive_has_no_lines(tmp_path: Path) -> None:
    for suffix, pack in PACK.items():
        assert list(read_lines(file_of(tmp_path, pack(b""), "c" + suffix))) == []


def test_zstandard_is_needed_for_zst_only(tmp_path: Path) -> None:
    plain = file_of(tmp_path, b"a\n")
    packed = file_of(tmp_path, PACK[".zst"](b"a\n"), "corpus.zst")
    script = (
        "import sys; sys.modules['zstandard'] = None\n"
        "from pathlib import Path; from tokenizer.lines import read_lines\n"
        f"print(list(read_lines(Path({str(plain)!r}))))\n"
        f"list(read_lines(Path({str(packed)!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.stdout == b"['a']\n"
    assert b"corpus.zst: to read .zst files, pip install 'tfm[zstd]'" in done.stderr


def test_empty_parts_of_an_archive_count_no_lines(tmp_path: Path) -> None:
    pack = PACK[".zst"]
    path = file_of(tmp_path, pack(b"a\nb\n") + pack(b""), "corpus.zst")
    assert count_lines(path) == 2
    assert list(read_lines(path)) == ["a", "b"]
