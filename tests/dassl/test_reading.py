"""Damaged, hostile and strange text files: one line that names the file."""

import os

import pytest

from dassl.utils import BadFile, MissingFile, UserError, read_json, read_text, read_yaml

DEEP = 200_000


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "line 1 column 1"),
        (b"{", "line 1"),
        (b'{"a": 1,\n "b" 2}', "line 2 column 6"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
        (b'{"a": "\xff"}', "is not UTF-8 (byte 7)"),
        (b"[" * DEEP + b"]" * DEEP, "nested too deep"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deep"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, part):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(BadFile) as caught:
        read_json(path)
    message = str(caught.value)
    assert part in message and str(path) in message and "\n" not in message
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: [1", "is not YAML"),
        (b"a: \x00", "is not YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("a: 1".encode("utf-16"), "is not UTF-8"),
        (b"A: {B: 1}\nC: 2\nA: {D: 1}", "A stands twice in one group (line 3)"),
        (b"A: {B: 1, B: 2}", "B stands twice"),
        (b"[" * DEEP, "is not YAML that can be read: it is nested too deep"),
        (b"- " * DEEP, "is not YAML that can be read: it is nested too deep"),
        (b"? " * DEEP, "is not YAML"),
    ],
)
def test_what_is_no_yaml_or_says_a_thing_twice_is_named(tmp_path, content, part):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(BadFile) as caught:
        read_yaml(path)
    assert part in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_merged_groups_may_be_overruled(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}}


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + b"[1]")
    assert read_json(path) == [1] and read_yaml(path) == [1]


def test_only_plain_files_of_a_sensible_size_are_read(tmp_path):
    with pytest.raises(MissingFile, match="nowhere.json"):
        read_json(tmp_path / "nowhere.json")
    with pytest.raises(BadFile, match="not a plain file"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match="not a plain file"):
        read_text(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"a" * 11)
    with pytest.raises(BadFile, match="has 11 bytes, more than 10"):
        read_text(tmp_path / "large", limit=10)
