"""Archives: read in memory, refused as a whole when one member leaves the folder."""

import gzip
import io
import tarfile
import tracemalloc

import pytest

from offramp.data import load
from offramp.data._archive import members


def archive(path, *entries):
    with tarfile.open(path, "w:gz") as built:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(content)
            built.addfile(info, io.BytesIO(content))
    return path


def test_wanted_members_are_read_and_others_are_not(tmp_path):
    path = archive(tmp_path / "a.tar.gz", ("d/x", b"1", tarfile.REGTYPE), ("d/y", b"2", tarfile.REGTYPE))
    assert members(path, ["x", "z"]) == {"x": b"1"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../evil", tarfile.REGTYPE, "'../evil' leaves the folder"),
        ("/etc/evil", tarfile.REGTYPE, "'/etc/evil' leaves the folder"),
        ("d/../../evil", tarfile.REGTYPE, "leaves the folder"),
        ("..\\evil", tarfile.REGTYPE, "leaves the folder"),
        ("C:/evil", tarfile.REGTYPE, "leaves the folder"),
        ("d/link", tarfile.SYMTYPE, "'d/link' is a link or a device"),
        ("d/hard", tarfile.LNKTYPE, "'d/hard' is a link or a device"),
        ("d/null", tarfile.CHRTYPE, "'d/null' is a link or a device"),
    ],
)
def test_one_bad_member_refuses_the_archive(tmp_path, name, kind, message):
    path = archive(tmp_path / "a.tar.gz", ("d/x", b"1", tarfile.REGTYPE), (name, b"", kind))
    with pytest.raises(ValueError, match=r"a.tar.gz is refused: its member") as caught:
        members(path, ["x"])
    assert message.replace("\\", "\\\\") in str(caught.value) or message in str(caught.value)


def test_twins_and_damage(tmp_path):
    path = archive(tmp_path / "a.tar.gz", ("d/x", b"123456", tarfile.REGTYPE), ("e/x", b"1", tarfile.REGTYPE))
    with pytest.raises(ValueError, match="holds x twice"):
        members(path, ["x"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is a damaged archive"):
        members(path, ["z"])


def test_load_refuses_such_an_archive(tmp_path):
    archive(tmp_path / "cifar-100-python.tar.gz", ("../train", b"", tarfile.REGTYPE))
    with pytest.raises(ValueError, match="leaves the folder"):
        load("cifar100", data_dir=tmp_path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("name", ["d/x", "d/other"])
def test_memory_is_bounded_by_the_size_of_the_archive(tmp_path, kind, name):
    path = tmp_path / "a.tar.gz"
    info = tarfile.TarInfo(name)
    info.size, info.type = 200 << 20, kind
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(200):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"it unpacks to over 20 times its size; download the archive"):
        members(path, ["x"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
