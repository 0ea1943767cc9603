"""A web server on this machine, for the tests of what downloads; tests/conftest.py starts one where a test asks."""

import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves what was `put`; `log` is (path, Range header) of every request.

    Each trick changes one answer of its file, in turn; they may be combined: status: 503, headers: {"Retry-After":
    "7"}, body: other bytes, no_range: True (the whole file, whatever was asked for), cut: 1000 (bytes, then the
    connection ends), stall: True (it stays open, and silent, until there is another request).
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.tricks, self.log = {}, {}, []
        self.base = f"http://127.0.0.1:{self.server_port}"

    def put(self, name, content, *tricks):
        """The address under which `content` can be had from now on."""
        self.files[f"/{name}"], self.tricks[f"/{name}"] = content, list(tricks)
        return f"{self.base}/{name}"

    def ranges(self, name):
        return [requested for path, requested in self.log if path == f"/{name}"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        requested = self.headers.get("Range")
        self.server.log.append((self.path, requested))
        waiting = self.server.tricks.get(self.path)
        trick = waiting.pop(0) if waiting else {}
        body = self.server.files.get(self.path)
        if trick.get("status") or body is None:
            return self.answer(trick.get("status", 404), b"", trick.get("headers", {}))
        body = trick.get("body", body)
        start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested and not trick.get("no_range") else 0
        if start >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        return self.answer(206 if start else 200, body[start:], headers | trick.get("headers", {}), trick)

    def answer(self, status, body, headers, trick=None):
        trick = trick or {}
        asked = len(self.server.log)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: trick.get("cut", len(body))])
        while trick.get("stall") and len(self.server.log) == asked:
            time.sleep(0.01)

    def log_message(self, *_):
        pass
