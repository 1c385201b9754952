"""Files of a folder or a tar archive by their names, read into memory; nothing is unpacked to the disk."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

RATIO, SLACK = 20, 1 << 20  # an archive may hold RATIO times its own size and SLACK bytes; pictures hardly compress


def members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """{name: content} of those wanted files that exist, directly in a folder or anywhere in a .tar or .tar.gz.

    Raises:
        ValueError: if an archive is damaged, or holds a path that leaves the folder, a link, a device, the same wanted
            name twice, or much more than its own size.
    """
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in names if (path / name).is_file()}
    limit = RATIO * path.stat().st_size + SLACK
    contents: dict[str, bytes] = {}
    try:
        with _opened(path) as stream, tarfile.open(fileobj=_Bounded(stream, path, limit), mode="r:") as archive:  # type: ignore[call-overload]
            for member in archive:
                _refuse(path, member)
                limit -= member.size
                if limit < 0:
                    raise _too_large(path)
                name = PurePosixPath(member.name).name
                content = archive.extractfile(member) if member.isfile() and name in names else None
                if content is None:
                    continue
                if name in contents:
                    raise ValueError(f"{path} holds {name} twice: download it from its original source")
                contents[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged archive ({error}): download it again") from error
    return contents


def _opened(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")


class _Bounded:
    """A stream that reads no more at once than an archive of this size can need, whatever a header claims."""

    def __init__(self, stream: Any, path: Path, limit: int) -> None:
        self.stream, self.path, self.limit = stream, path, limit
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        """At most `size` bytes.

        Raises:
            ValueError: if that is more than the archive can need.
        """
        if not 0 <= size <= self.limit:
            raise _too_large(self.path)
        content: bytes = self.stream.read(size)
        return content


def _too_large(path: Path) -> ValueError:
    return ValueError(
        f"{path} is refused: it unpacks to over {RATIO} times its size; download the archive from its original source"
    )


def _refuse(path: Path, member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name.replace("\\", "/"))
    advice = "download the archive from its original source"
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and parts.parts[0].endswith(":")):
        raise ValueError(f"{path} is refused: its member {member.name!r} leaves the folder; {advice}")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path} is refused: its member {member.name!r} is a link or a device; {advice}")
