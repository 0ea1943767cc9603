"""One file from a server on this machine: broken off, slow, busy, redirected, or another one than was asked for."""

import itertools
import types

import pytest

from dassl.utils import UserError
from dassl.utils import download as downloader
from dassl.utils.download import download_file, part_of
from tests.datasets.fetching import PAGE

CONTENT = bytes(range(256)) * 1000


def get(url, target, content=CONTENT):
    download_file(url, target, lambda path: None if path.read_bytes() == content else "is wrong")
    assert target.read_bytes() == content and not part_of(target).exists()


def test_a_good_answer_is_stored_under_its_name(server, tmp_path):
    get(server.put("file", CONTENT), tmp_path / "file")
    assert server.ranges("file") == [None]


def test_truncated_answers_are_taken_up_where_they_ended(server, tmp_path):
    get(server.put("file", CONTENT, {"cut": 1000}, {"cut": 500}), tmp_path / "file")
    assert server.ranges("file") == [None, "bytes=1000-", "bytes=1500-"]


def test_a_server_that_sends_one_byte_a_connection_is_given_up(server, tmp_path):
    with pytest.raises(UserError, match=r"the connection ended after 4 of 256,000 bytes\): run again to go on"):
        get(server.put("file", CONTENT, *[{"cut": 1}] * 20), tmp_path / "file")
    assert server.ranges("file") == [None, "bytes=1-", "bytes=2-", "bytes=3-"]


def test_connections_that_bring_something_are_taken_up_as_often_as_it_takes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloader, "ENOUGH", 1000)
    get(server.put("file", CONTENT, *[{"cut": 20_000}] * 9), tmp_path / "file")
    assert len(server.log) == 10


def test_a_connection_that_drips_is_given_up(server, tmp_path, monkeypatch):
    hours = itertools.count(step=3600)
    monkeypatch.setattr(downloader, "monotonic", lambda: next(hours))
    with pytest.raises(UserError, match="it sends less than 1,000 bytes a second"):
        get(server.put("file", CONTENT, *[{"cut": 1}] * 9), tmp_path / "file")
    assert len(server.log) == 4


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    part_of(tmp_path / "file").write_bytes(CONTENT[:1000])
    get(server.put("file", CONTENT, {"no_range": True}), tmp_path / "file")


def test_a_server_that_sends_another_range_is_not_believed(server, tmp_path):
    part_of(tmp_path / "file").write_bytes(CONTENT[:1000])
    wrong = {"headers": {"Content-Range": "bytes 0-10/11"}}
    get(server.put("file", CONTENT, wrong), tmp_path / "file")
    assert server.ranges("file") == ["bytes=1000-", None]


def test_a_slow_server_is_asked_again_after_a_while_and_goes_on(server, tmp_path, monkeypatch):
    def patient(_):
        monkeypatch.setattr(downloader, "TIMEOUT", 30)  # the second answer comes, however slow this machine is

    monkeypatch.setattr(downloader, "TIMEOUT", 1)
    monkeypatch.setattr(downloader, "time", types.SimpleNamespace(sleep=patient))
    get(server.put("file", CONTENT, {"cut": 1000, "stall": True}), tmp_path / "file")
    assert server.ranges("file") == [None, "bytes=1000-"]


def test_redirects_are_followed(server, tmp_path):
    server.put("file", CONTENT)
    get(server.put("old", b"", {"status": 302, "headers": {"Location": "/file"}}), tmp_path / "file")


def test_a_redirect_loop_ends_with_an_error(server, tmp_path):
    turn = {"status": 302, "headers": {"Location": "/loop"}}
    with pytest.raises(UserError, match="infinite loop"):
        get(server.put("loop", b"", *[turn] * 20), tmp_path / "file")


def test_a_redirect_from_https_to_http_is_refused():
    request = types.SimpleNamespace(type="https", full_url="https://a.org/x")
    with pytest.raises(UserError, match="https://a.org/x leads to http://b.org, which is not encrypted"):
        downloader._KeepHttps().redirect_request(request, None, 302, "", {}, "http://b.org")


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/html; charset=utf-8"}])
def test_a_web_page_is_recognised_named_and_never_stored(server, tmp_path, headers):
    with pytest.raises(UserError, match='answered with a web page "Google Drive - Quota exceeded" instead of the file'):
        get(server.put("file", PAGE, {"headers": headers}), tmp_path / "file")
    assert list(tmp_path.iterdir()) == [] and len(server.log) == 1


def test_a_web_page_does_not_destroy_what_was_downloaded_before(server, tmp_path):
    part_of(tmp_path / "file").write_bytes(CONTENT[:1000])
    url = server.put("file", CONTENT, {"body": PAGE, "no_range": True})
    with pytest.raises(UserError, match="web page"):
        get(url, tmp_path / "file")
    get(url, tmp_path / "file")
    assert server.ranges("file") == ["bytes=1000-"] * 2


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(UserError, match=f"can't download {server.base}/nothing.*404.*run again"):
        get(f"{server.base}/nothing", tmp_path / "file")
    assert len(server.log) == 1


def test_a_busy_server_gets_the_time_it_asks_for(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(downloader, "time", types.SimpleNamespace(sleep=waits.append))
    past = {"status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}}
    get(
        server.put("file", CONTENT, {"status": 429, "headers": {"Retry-After": "7"}}, {"status": 429}, past),
        tmp_path / "f",
    )
    assert waits == [7, 0, 0] and len(server.log) == 4


def test_a_server_that_asks_for_an_hour_is_given_up_with_its_wish(server, tmp_path):
    with pytest.raises(UserError, match=r"429.*left alone for 3600 s.*run again"):
        get(server.put("file", CONTENT, {"status": 429, "headers": {"Retry-After": "3600"}}), tmp_path / "file")
    assert len(server.log) == 1


def test_tries_back_off_and_end(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(downloader, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(downloader, "time", types.SimpleNamespace(sleep=waits.append))
    with pytest.raises(UserError, match="503"):
        get(server.put("file", CONTENT, *[{"status": 503}] * 9), tmp_path / "file")
    assert waits == [1, 2, 4]


def test_a_corrupt_file_is_removed_and_the_next_run_starts_fresh(server, tmp_path):
    url = server.put("file", CONTENT, {"body": CONTENT[:-1] + b"?"})
    with pytest.raises(UserError, match="is wrong: it was deleted"):
        get(url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    get(url, tmp_path / "file")
