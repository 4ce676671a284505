"""Files as they are, unpacked as they are read: .gz, .xz, .bz2 and .zst, by the libraries for them.

    for block in unpacked(path, file): ...      bytes, in constant memory
    stream = Unpacked(path)                     the same as a stream to read from

An archive that is damaged or cut short, in any of its members, is an error: nothing is left out in silence.
"""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizer.errors import UserError

_SUFFIXES = (".gz", ".xz", ".bz2", ".zst")
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading and unpacking may raise
_BEGINNINGS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
    ".bz2": re.compile(rb"BZh[1-9]1AY&SY"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
}
_ZIP = b"PK\x03\x04"
_TAR, _TAR_AT = b"ustar", 257  # behind the name of the first file and its facts
_BLOCK = 1 << 20  # bytes, unpacked
_PACKED_BLOCK = 1 << 16


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() in _SUFFIXES


class Unpacked(io.RawIOBase):
    """The text of a compressed file, for a `LineReader`."""

    def __init__(self, path: Path) -> None:
        """Open a file; raises OSError."""
        super().__init__()
        self._file = path.open("rb")
        self._blocks = unpacked(path, self._file)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, however many; none at the end."""
        return next(filter(None, self._blocks), b"")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def unpacked(path: Path, file: io.BufferedReader) -> Iterator[bytes]:
    """The content of a file, block by block, each as soon as it has arrived.

    Args:
        path: Its name, whose end says how it is packed.
        file: Opened to read bytes.

    Raises:
        UserError: When a library for it is not installed, or what it holds is no text.
        Exception: One of `BROKEN` when it is damaged or cannot be read.
    """
    begins = True
    for block in _blocks(path, file):
        if begins and block:
            refuse_binary(str(path), block)
            begins = False
        yield block


def _blocks(path: Path, file: io.BufferedReader) -> Iterator[bytes]:
    stream: io.BufferedIOBase
    match path.suffix.lower():
        case ".zst":
            yield from _zst(path, file)
            return
        case ".gz":
            if not file.peek(1):  # the library takes it for a complete one
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            stream = gzip.GzipFile(fileobj=file)
        case ".xz":
            yield from _members(lzma.LZMADecompressor, b"\0", file)
            return
        case ".bz2":
            yield from _members(bz2.BZ2Decompressor, b"", file)
            return
        case _:
            stream = file
    while block := stream.read1(_BLOCK):  # no line waits for what comes behind it
        yield block


def refuse_binary(name: str, head: bytes) -> None:
    """Refuse what is packed, an archive or UTF-16, by its first bytes, with which no text begins.

    Args:
        name: Of the file or stream.
        head: Its first bytes.

    Raises:
        UserError: Saying what it is.
    """
    for suffix, beginning in _BEGINNINGS.items():
        if beginning.match(head):
            raise UserError(
                f"{name}: is compressed; unpack it, or give a file whose name ends in {suffix}"
            )
    if head.startswith(_ZIP) or head[_TAR_AT:].startswith(_TAR):
        raise UserError(f"{name}: is an archive; take the text out of it")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{name}: is UTF-16; convert it to UTF-8")


def _members(
    decompressor: Callable[[], lzma.LZMADecompressor | bz2.BZ2Decompressor],
    padding: bytes,
    file: io.BufferedReader,
) -> Iterator[bytes]:
    """Unpack the members of a .xz or .bz2 file, which may have padding behind them.

    The library's own file objects take damage behind the first member for the end of the file.
    """
    packed = file.read1(_PACKED_BLOCK)
    while True:
        member = decompressor()
        while not member.eof:
            if member.needs_input and not packed:
                raise EOFError("compressed file ended before the end of its data")
            yield member.decompress(packed, _BLOCK)
            packed = file.read1(_PACKED_BLOCK) if member.needs_input else b""
        packed = _after_padding(member.unused_data, padding, file)
        if not packed:
            return


def _after_padding(packed: bytes, padding: bytes, file: io.BufferedReader) -> bytes:
    """Pass over padding, in multiples of four bytes; none at the end of the file."""
    n_padding = 0
    while True:
        rest = packed.lstrip(padding)
        n_padding += len(packed) - len(rest)
        packed = rest or file.read1(_PACKED_BLOCK)
        if rest or not packed:
            break
    if n_padding % 4:
        raise EOFError("damaged padding")
    return packed


def _zst(path: Path, file: io.BufferedReader) -> Iterator[bytes]:
    """Unpack the frames of a .zst file.

    The library's own stream reader takes a truncated file for a complete one; its decompression
    object knows whether the frame has ended.
    """
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{path}: to read .zst files, pip install 'tfm[zstd]'") from error
    # Begun before there is anything to read: an empty file lacks the end of a frame, too.
    frame: zstandard.ZstdDecompressionObj | None = zstandard.ZstdDecompressor().decompressobj()
    while packed := file.read1(_PACKED_BLOCK):
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            packed = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("compressed file ended before the end of its frame")
