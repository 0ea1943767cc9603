"""Unpacking archives that strangers made: nothing leaves the folder, and nothing grows without end."""

import errno
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import PurePosixPath

from tqdm import tqdm

from .download import BLOCK
from .errors import UserError

MOST_FILES = 3_000_000  # ImageNet has 1.3 million
_NESTED = (".tar", ".tgz", ".gz", ".zip")
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, ValueError, RuntimeError)
LONGEST_HEADER = 1 << 20  # bytes that say how a member of a tar is called
_HEADERS = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)  # not the archive's fault


class BadArchive(UserError):
    """An archive that is damaged, or that does what no honest archive does."""


def is_archive(path):
    """Whether the content (not the name) is that of a zip, or of a tar, plain or compressed."""
    with open(path, "rb") as file:
        start = file.read(4)
    return start in (b"PK\x03\x04", b"PK\x05\x06") or _is_tar(path)


def unpack(path, folder, limit):
    """Unpack the archive `path` into `folder`, writing at most `limit` bytes.

    Only plain files are written; links and devices are left out, as are macOS's leftovers (`._*`, __MACOSX).
    An archive inside (one level, as in Caltech101 and ImageNet) becomes a folder with its name. Raises
    BadArchive for a damaged archive, for names that lead out of `folder` and for one that exceeds the limit.
    """
    try:
        with tqdm(desc=f"unpacking {path.name}", unit=" files") as bar:
            skipped = _unpack(path, folder, _Allowance(limit), bar, nested=True)
    except _Refused as error:
        raise BadArchive(f"{path}: {error}") from error
    except (*_BROKEN, OSError) as error:
        if getattr(error, "errno", None) in _DISK:
            raise
        raise BadArchive(f"{path} is damaged ({type(error).__name__}: {error}): get it again") from error
    if skipped:
        print(f"{path.name}: left out {skipped} links or devices")


class _Refused(Exception):
    """Why an archive is not unpacked any further."""


class _Member(tarfile.TarInfo):
    """A member of a tar, of whose headers none is read into memory that is longer than a name can be."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if member.type == tarfile.GNUTYPE_SPARSE or (member.type in _HEADERS and member.size > LONGEST_HEADER):
            raise _Refused("it has a header that no honest archive has")
        return member


def _is_tar(path):
    try:
        with tarfile.open(path, tarinfo=_Member):
            return True
    except tarfile.TarError:
        return False
    except _Refused:
        return True  # unpacking says why


class _Allowance:
    """What may still be written."""

    def __init__(self, limit):
        self.bytes, self.files = limit, MOST_FILES

    def spend(self, size=0, files=0):
        self.bytes -= size
        self.files -= files
        if self.bytes < 0 or self.files < 0:
            raise _Refused("it holds far more than it should (a decompression bomb?)")


def _unpack(path, folder, allowance, bar, nested):
    """Returns how many links and devices were left out."""
    if not is_archive(path):
        raise _Refused("it is neither a zip nor a tar")
    skipped = 0
    with _members(path) as members:
        for name, size, source in members:
            allowance.spend(files=1)
            target = _inside(folder, name)
            if source is None:
                skipped += 1
            elif not _is_leftover(name):
                _write(source, target, size, allowance)
                bar.update()
                if nested and target.suffix.lower() in _NESTED and is_archive(target):
                    inner = target.with_name(target.name.split(".")[0])
                    skipped += _unpack(target, inner, allowance, bar, nested=False)
                    target.unlink()
    return skipped


@contextmanager
def _members(path):
    """Yields an iterator over (name, size in bytes, open file); the file is None for links and devices."""
    if _is_tar(path):
        with tarfile.open(path, tarinfo=_Member) as archive:
            plain = (member for member in _in_order(archive) if not member.isdir())
            yield ((m.name, m.size, archive.extractfile(m) if m.isreg() else None) for m in plain)
    else:
        with zipfile.ZipFile(path) as archive:
            plain = (info for info in archive.infolist() if not info.is_dir())
            yield ((i.filename, i.file_size, None if _is_link(i) else archive.open(i)) for i in plain)


def _in_order(archive):
    """The members of a tar, which are forgotten one by one: there may be millions."""
    while (member := archive.next()) is not None:
        archive.members.clear()
        yield member


def _is_link(info):
    mode = info.external_attr >> 16
    return stat.S_IFMT(mode) not in (0, stat.S_IFREG)


def _inside(folder, name):
    """The path in `folder` for a member's name."""
    plain = name.replace("\\", "/")  # as Windows would read it
    parts = PurePosixPath(plain).parts
    if not parts or plain.startswith("/") or ".." in parts or re.match("[A-Za-z]:", plain):
        raise _Refused(f"the name {name!r} in it leads out of the folder")
    return folder.joinpath(*parts)


def _is_leftover(name):
    return any(part == "__MACOSX" or part.startswith("._") for part in PurePosixPath(name).parts)


def _write(source, target, size, allowance):
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, open(target, "wb") as out:
        written = 0
        while block := source.read(BLOCK):
            allowance.spend(len(block))
            written += out.write(block)
    if written != size:
        raise _Refused(f"{target.name} in it ends after {written:,} of {size:,} bytes")
