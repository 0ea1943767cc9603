"""The benchmark of the data path, at its smallest."""

import json

import pytest

from benchmarks import data
from dassl.utils import UserError


def test_every_row_has_speeds_and_pixels_close_to_the_plain_path(tmp_path, capsys):
    assert data.main(["--quick", "--json", str(tmp_path / "rows.json")]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    rows = found["rows"]
    kinds = ("JPEG 500 px", "JPEG 2000 px", "PNG 64 px")
    expected = [(kind, transform) for kind in kinds for transform in ("train", "test")]
    assert [(row["images"], row["transform"]) for row in rows] == [*expected, ("JPEG 2000 px", "test, draft")]
    assert all(row["plain"] > 0 and row["ratio"] == row["ours"] / row["plain"] for row in rows)
    assert all(row["mean"] < 0.1 for row in rows[:-1]) and rows[-1]["mean"] > 0.1
    assert all(row["gain"] == row["again"] / row["ours"] for row in rows if row["transform"] == "train")
    assert [row["loader"] for row in found["loader"]] == ["0 workers", "2 workers"]
    assert all(row["gain"] == row["kept"] / row["decoded each time"] > 0 for row in found["loader"])
    table = capsys.readouterr().out
    assert "JPEG 500 px: 2 files of 80 kB" in table and "test, draft" in table


def test_the_loaders_epochs_find_images_decoded_only_where_these_are_kept(tmp_path):
    """Deleted files: an epoch behind the first one reads none."""
    paths = data.make_files(tmp_path, number=2)["JPEG 500 px"]
    again, plain = (data.epoch_of(paths, 4, megabytes, workers=0) for megabytes in (100, 0))
    for path in paths:
        path.unlink()
    again()
    with pytest.raises(UserError):
        plain()


def test_an_existing_file_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "rows.json").touch()
    assert data.main(["--quick", "--json", str(tmp_path / "rows.json")]) == 1
    assert "rows.json exists already" in capsys.readouterr().err
