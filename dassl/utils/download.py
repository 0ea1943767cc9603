"""One file from the web: taken up where it broke off, tried again, verified, and only then under its name."""

import errno
import hashlib
import os
import re
import socket
import ssl
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from time import monotonic
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from .errors import UserError

TRIES = 4  # connections in a row that brought less than ENOUGH
ENOUGH = 1 << 16  # bytes
SLOWEST = 1000  # bytes a second, after TIMEOUT
WAIT_SECONDS = 1.0  # before the second try; doubles from try to try
LONGEST_WAIT = 120.0  # seconds that a server may ask us to wait (Retry-After)
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 20  # bytes
_HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; dassl-download)"}  # some hosts refuse Python's own name


class DownloadError(UserError, OSError):
    """A file that can't be had, or is not the one that was asked for."""


def download_file(url, target, fault):
    """Download `url` to the path `target` by way of `<target>.part`, where an interrupted download goes on.

    `fault(path)` says what is wrong with the finished file, or None; a faulty file is removed. Broken
    connections and busy servers (5xx, 429 with or without Retry-After) are tried again. Nothing checks whether
    `target` exists. Raises DownloadError.
    """
    part = part_of(target)
    failures = 0
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _append_rest(url, part, size)
            break
        except DownloadError:
            raise
        except (OSError, HTTPException) as error:
            if getattr(error, "code", None) == 416 and size:  # nothing behind byte `size`: `fault` judges
                break
            failures = 1 if part.exists() and part.stat().st_size >= size + ENOUGH else failures + 1
            pause = _pause(error, failures)
            if failures == TRIES or not _may_pass(error) or pause > LONGEST_WAIT:
                wish = f", it asks to be left alone for {pause:.0f} s" if pause > LONGEST_WAIT else ""
                advice = "run again to go on where it stopped"
                raise DownloadError(f"can't download {url} ({error}{wish}): {advice}") from error
            time.sleep(pause)
    settle_part(part, target, fault, url)


def part_of(target):
    return target.with_name(f"{target.name}.part")


def settle_part(part, target, fault, url):
    """Give the finished download `part` its name, or remove it and say what is wrong with it."""
    wrong = fault(part)
    if wrong:
        part.unlink()
        advice = "it was deleted; run again, and if this repeats look for a proxy that changes it"
        raise DownloadError(f"the file from {url} {wrong}: {advice}")
    os.replace(part, target)


def _append_rest(url, part, size):
    """Append to `part` what `url` holds behind byte `size`; start anew where the server can't do that."""
    request = Request(url, headers=_HEADERS | ({"Range": f"bytes={size}-"} if size else {}))
    with build_opener(_KeepHttps).open(request, timeout=TIMEOUT) as response:
        begun = monotonic()
        done = size if getattr(response, "status", None) == 206 else 0
        if not response.headers.get("Content-Range", f"bytes {done}-").startswith(f"bytes {done}-"):
            part.unlink(missing_ok=True)
            raise ConnectionError("the server sent another range than the one asked for")
        length = getattr(response, "length", None)  # of what is still to come; a file:// answer has none
        start, total = done, done + length if length else None
        block = response.read1(BLOCK)  # what has arrived: a full read would lose it when the connection stalls
        if not done:
            _refuse_page(url, response.headers.get("Content-Type", ""), block)  # before `part` is overwritten
        bar = tqdm(total=total, initial=done, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, open(part, "ab" if done else "wb") as out:
            while block:
                done += out.write(block)
                bar.update(len(block))
                if done - start < SLOWEST * (monotonic() - begun - TIMEOUT):
                    raise ConnectionError(f"it sends less than {SLOWEST:,} bytes a second")
                block = response.read1(BLOCK)
    if total and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


class _KeepHttps(HTTPRedirectHandler):
    """Follows redirects, but not from https to http, where anyone on the way could answer."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.type == "https" and not newurl.startswith("https:"):
            raise DownloadError(f"{req.full_url} leads to {newurl}, which is not encrypted: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_page(url, content_type, block):
    """Quota, login and virus-scan pages come with "200 OK"."""
    start = block[:4096].decode("utf-8", "replace").lstrip("\ufeff \r\n\t").lower()
    if content_type.startswith("text/html") or start.startswith(("<!doctype html", "<html")):
        title = re.search(r"<title[^>]*>(.*?)</title>", block.decode("utf-8", "replace"), re.IGNORECASE | re.DOTALL)
        named = f' "{" ".join(title[1].split())}"' if title else ""
        raise DownloadError(f"{url} answered with a web page{named} instead of the file (a quota, login or error page)")


def _pause(error, failures):
    """Seconds until the next try: what the server asks for, else 1, 2, 4, ..."""
    asked = getattr(error, "headers", None) and error.headers.get("Retry-After")
    if asked:
        with suppress(ValueError):
            return max(0.0, float(asked))
        with suppress(ValueError, TypeError):
            return max(0.0, (parsedate_to_datetime(asked) - datetime.now(timezone.utc)).total_seconds())
    return WAIT_SECONDS * 2 ** (failures - 1)


def _may_pass(error):
    """Whether another try can help: not against a wrong address (most 4xx), a bad certificate, a full disk."""
    reason = getattr(error, "reason", None)  # of a URLError
    unknown_host = isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    if unknown_host or isinstance(reason, ssl.SSLCertVerificationError):
        return False
    hopeless = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
    code = getattr(error, "code", 500)
    return (code >= 500 or code in (408, 425, 429)) and getattr(error, "errno", None) not in hopeless


def file_hash(path, algorithm="sha256"):
    """Hex digest of the file; `algorithm` is a name that hashlib knows."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def alone(lock):
    """Runs started together take turns, except where locks don't exist (some network folders, Windows)."""
    with open(lock, "ab") as file:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
