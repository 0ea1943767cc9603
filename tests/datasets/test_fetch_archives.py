"""Archives that strangers made: they are unpacked into their folder or refused, and never anything else."""

import errno
import io
import random
import stat
import tarfile
import tracemalloc
import zipfile

import pytest

from dassl.utils import archives
from dassl.utils.archives import BadArchive, is_archive, unpack

LIMIT = 1_000_000
MODES = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def make_tar(path, members, mode="w"):
    """`members` are (name, content) pairs or TarInfo objects."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def place(tmp_path):
    """The folder to unpack into; whatever appears beside it has escaped."""
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "secret").write_bytes(b"secret")
    return tmp_path / "outer" / "inner"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def nothing_escaped(place):
    return sorted(p.name for p in place.parent.iterdir()) in (["inner", "secret"], ["secret"]) and (
        (place.parent / "secret").read_bytes() == b"secret"
    )


@pytest.mark.parametrize("kind", ["zip", *MODES])
def test_archives_are_recognised_by_content_and_unpacked(kind, tmp_path, place):
    path, members = tmp_path / "misnamed.dat", [("a/b.jpg", b"1" * 2000), ("c.txt", b"")]
    make_zip(path, members) if kind == "zip" else make_tar(path, members, MODES[kind])
    assert is_archive(path)
    unpack(path, place, LIMIT)
    assert contents(place) == dict(members)


@pytest.mark.parametrize("content", [b"", b"hello", b"<html></html>", b"\x1f\x8b" + bytes(100)])
def test_other_files_are_no_archives(content, tmp_path, place):
    (tmp_path / "x.zip").write_bytes(content)
    assert not is_archive(tmp_path / "x.zip")
    with pytest.raises(BadArchive, match="x.zip: it is neither a zip nor a tar"):
        unpack(tmp_path / "x.zip", place, LIMIT)


NAMES = ["../x", "a/../../x", "/tmp/escaped-x", "..", "a\\..\\..\\x", "C:\\x", "C:x", "\\\\host\\x"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_of_the_folder_are_refused(kind, name, tmp_path, place):
    path = tmp_path / "evil"
    (make_zip if kind == "zip" else make_tar)(path, [("good.jpg", b"1"), (name, b"evil")])
    with pytest.raises(BadArchive, match="leads out of the folder"):
        unpack(path, place, LIMIT)
    assert nothing_escaped(place)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "link", "good.jpg", ".."])
def test_links_are_left_out_and_lead_nowhere(kind, target, tmp_path, place, capsys):
    """Not even a file written "through" a link, a link to itself or one to a file inside."""
    path = tmp_path / "evil.tar"
    make_tar(path, [("good.jpg", b"1"), special("link", kind, target), ("link/x.jpg", b"2")])
    unpack(path, place, LIMIT)
    assert contents(place) == {"good.jpg": b"1", "link/x.jpg": b"2"} and nothing_escaped(place)
    assert "left out 1 links or devices" in capsys.readouterr().out


def test_links_in_circles_end(tmp_path, place):
    make_tar(tmp_path / "x.tar", [special("a", tarfile.SYMTYPE, "b"), special("b", tarfile.SYMTYPE, "a")])
    unpack(tmp_path / "x.tar", place, LIMIT)
    assert not place.exists()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_left_out(kind, tmp_path, place):
    make_tar(tmp_path / "x.tar", [special("device", kind), ("good.jpg", b"1")])
    unpack(tmp_path / "x.tar", place, LIMIT)
    assert contents(place) == {"good.jpg": b"1"}


def test_links_in_a_zip_are_left_out(tmp_path, place):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../secret")
    unpack(tmp_path / "x.zip", place, LIMIT)
    assert contents(place.parent) == {"secret": b"secret"}


def test_files_are_not_made_executable_or_someone_elses(tmp_path, place):
    info = tarfile.TarInfo("x")
    info.mode, info.uid, info.size = 0o6777, 12345, 0
    make_tar(tmp_path / "x.tar", [info])
    unpack(tmp_path / "x.tar", place, LIMIT)
    assert not (place / "x").stat().st_mode & 0o6111


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_a_bomb_is_stopped_at_the_limit(kind, tmp_path, place):
    path, members = tmp_path / "bomb", [(f"{n}.jpg", bytes(400_000)) for n in range(10)]
    make_zip(path, members) if kind == "zip" else make_tar(path, members, MODES[kind])
    assert path.stat().st_size < 100_000
    with pytest.raises(BadArchive, match="far more than it should"):
        unpack(path, place, LIMIT)
    assert sum(map(len, contents(place).values())) <= LIMIT


def test_a_bomb_in_an_archive_in_the_archive_is_stopped_too(tmp_path, place):
    make_zip(tmp_path / "inner.zip", [("x", bytes(2 * LIMIT))])
    make_zip(tmp_path / "outer.zip", [("a/inner.zip", (tmp_path / "inner.zip").read_bytes())])
    with pytest.raises(BadArchive, match="far more than it should"):
        unpack(tmp_path / "outer.zip", place, LIMIT)


def test_millions_of_empty_files_are_stopped(tmp_path, place, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FILES", 10)
    make_tar(tmp_path / "x.tar", [(f"{n}", b"") for n in range(11)])
    with pytest.raises(BadArchive, match="far more than it should"):
        unpack(tmp_path / "x.tar", place, LIMIT)
    assert len(contents(place)) == 10


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_header_that_would_fill_the_memory_is_not_read(kind, tmp_path, place):
    size = 16 << 20
    member = tarfile.TarInfo("0.jpg")
    member.pax_headers = {"comment": "x" * size}
    make_tar(tmp_path / "x", [("1.jpg", b"1"), member], MODES[kind])
    tracemalloc.start()
    with pytest.raises(BadArchive, match="it has a header that no honest archive has"):
        unpack(tmp_path / "x", place, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < size / 2
    tracemalloc.stop()


def test_a_sparse_file_is_refused(tmp_path, place):
    member = tarfile.TarInfo("0.jpg")
    member.type = tarfile.GNUTYPE_SPARSE
    make_tar(tmp_path / "x.tar", [member])
    with pytest.raises(BadArchive, match="it has a header that no honest archive has"):
        unpack(tmp_path / "x.tar", place, LIMIT)


def test_links_without_end_are_stopped_too(tmp_path, place, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FILES", 10)
    links = [tarfile.TarInfo(f"{n}") for n in range(11)]
    for link in links:
        link.type, link.linkname = tarfile.SYMTYPE, "x"
    make_tar(tmp_path / "x.tar", links)
    with pytest.raises(BadArchive, match="far more than it should"):
        unpack(tmp_path / "x.tar", place, LIMIT)


def test_only_one_level_of_archives_is_unpacked(tmp_path, place):
    make_zip(tmp_path / "c.zip", [("x", b"1")])
    make_zip(tmp_path / "b.zip", [("c.zip", (tmp_path / "c.zip").read_bytes())])
    make_zip(tmp_path / "a.zip", [("b.zip", (tmp_path / "b.zip").read_bytes())])
    unpack(tmp_path / "a.zip", place, LIMIT)
    assert contents(place) == {"b/c.zip": (tmp_path / "c.zip").read_bytes()}


def test_names_that_collide_or_are_too_long_are_refused(tmp_path, place):
    for members in ([("a", b"1"), ("a/b", b"2")], [("a/b", b"1"), ("a", b"2")], [("x" * 300, b"1")]):
        make_tar(tmp_path / "x.tar", members)
        with pytest.raises(BadArchive, match="x.tar is damaged"):
            unpack(tmp_path / "x.tar", place, LIMIT)


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path, place, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    make_zip(tmp_path / "x.zip", [("a", b"1")])
    monkeypatch.setattr(archives, "_write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        unpack(tmp_path / "x.zip", place, LIMIT)
    assert not isinstance(caught.value, BadArchive)


def test_macos_leftovers_stay_out(tmp_path, place):
    make_zip(tmp_path / "x.zip", [("a/x.jpg", b"1"), ("a/._x.jpg", b"2"), ("__MACOSX/a/y", b"3")])
    unpack(tmp_path / "x.zip", place, LIMIT)
    assert contents(place) == {"a/x.jpg": b"1"}


@pytest.mark.parametrize("kind", ["zip", *MODES])
def test_damaged_archives_are_one_line_that_names_them(kind, tmp_path, place):
    """Truncated anywhere or with a byte changed: it unpacks or is refused, but never anything else."""
    path, stream = tmp_path / "x", random.Random(0)
    members = [(f"{n}.jpg", stream.randbytes(3000)) for n in range(4)]
    make_zip(path, members) if kind == "zip" else make_tar(path, members, MODES[kind])
    good, refused = path.read_bytes(), 0
    for _ in range(40):
        bad = bytearray(good[: stream.choice([len(good), stream.randrange(len(good))])])
        if len(bad) == len(good):
            bad[stream.randrange(len(bad))] ^= 1 << stream.randrange(8)
        path.write_bytes(bad)
        try:
            unpack(path, place, LIMIT)
        except BadArchive as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 10 and nothing_escaped(place)


def test_an_encrypted_zip_is_refused(tmp_path, place):
    make_zip(tmp_path / "x.zip", [("a", b"1")])
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[6] |= 1  # the flag in the file's header, and in the directory at the end
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(BadArchive, match="damaged.*encrypted"):
        unpack(tmp_path / "x.zip", place, LIMIT)
