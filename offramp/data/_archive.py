"""Files of a folder or a tar archive by their names, read into memory; nothing is ever unpacked."""

import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

LIMIT = 1 << 30  # bytes of one member


def members(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """{name: content} of those wanted files that are there, directly in a folder or anywhere in an archive.

    Raises:
        ValueError: if an archive is damaged, or holds a path that leaves the folder, a link, a device, a giant, or
            the same wanted name twice.
    """
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in wanted if (path / name).is_file()}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                _refuse(path, member)
                name = PurePosixPath(member.name).name
                stream = archive.extractfile(member) if member.isfile() and name in wanted else None
                if stream is None:
                    continue
                if name in found:
                    raise ValueError(f"{path} holds {name} twice: get it from its original source")
                found[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is a damaged archive ({error}): get it again") from error
    return found


def _refuse(path: Path, member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name.replace("\\", "/"))
    advice = "get the archive from its original source"
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and parts.parts[0].endswith(":")):
        raise ValueError(f"{path} is refused: its member {member.name!r} leaves the folder; {advice}")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{path} is refused: its member {member.name!r} is a link or a device; {advice}")
    if member.size > LIMIT:
        raise ValueError(f"{path} is refused: its member {member.name!r} is {member.size} bytes long; {advice}")
