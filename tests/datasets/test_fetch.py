"""python -m datasets.fetch against a server on this machine."""

import io
import json
import os
import re
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dassl.utils import download as downloader
from datasets import fetch, sources
from datasets.dtd import DescribableTextures
from datasets.published import Published, lines_hash, picks_hash, split_problem
from datasets.splits import read_split, select_shots
from tests.datasets.fetching import IMAGES, PAGE, SPLIT, assert_complete, files_in, run, tarred, under, zipped

# ---- a dataset ---------------------------------------------------------------------------------------------


def test_a_dataset_is_fetched_verified_unpacked_and_left_alone_afterwards(world, capsys):
    assert run(world, "eurosat") == 0
    assert_complete(world)
    out = capsys.readouterr().out
    assert "Licence: MIT" in out and "python -m datasets.doctor eurosat" in out
    requests = len(world.server.log)
    assert run(world, "eurosat") == 0
    assert len(world.server.log) == requests
    assert f"EuroSAT: already in {world.folder}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["eurosat", "EuroSAT", "EUROSAT", "all"])
def test_names_of_yaml_files_and_classes_are_understood(world, name):
    assert run(world, name, "--dry-run") == 0


@pytest.mark.parametrize(
    "name, answer", [("eurosatt", 'no dataset "eurosatt" (do you mean "eurosat"?)'), ("emoji", "needs no download")]
)
def test_other_names_are_answered(world, name, answer, capsys):
    assert run(world, name) == 1
    assert answer in capsys.readouterr().err


def test_no_name_is_a_usage_error(world, capsys):
    assert run(world) == 1
    assert "name datasets, or all" in capsys.readouterr().err


def test_a_dry_run_shows_everything_and_touches_nothing(world, capsys):
    assert run(world, "eurosat", "--dry-run") == 0
    out = capsys.readouterr().out
    assert f"EuroSAT.zip from official: {world.server.base}/EuroSAT.zip" in out and "sha256" in out
    assert f"split_zhou_EuroSAT.json from mirror: {world.server.base}/split.json" in out
    assert world.server.log == [] and not world.root.exists()


def test_the_list_says_what_is_there(world, capsys):
    assert run(world, "--list") == 0
    assert "lacks split_zhou_EuroSAT.json, 2750" in capsys.readouterr().out
    run(world, "eurosat")
    capsys.readouterr()
    assert run(world, "--list") == 0
    assert f"in {world.folder}" in capsys.readouterr().out


def test_the_next_source_is_tried_and_the_failure_reported(world, capsys):
    broken = {"official": [{"url": f"{world.server.base}/gone.zip"}]}
    page = {"mirror": [{"url": world.server.put("page.zip", PAGE)}]}
    no_archive = {"mirror": [{"url": world.server.put("text.zip", b"hello")}]}
    other = {"mirror": [{"url": world.server.put("other.zip", zipped({"README": b""}))}]}
    world.entry["sources"][:0] = [broken, page, no_archive, other]
    assert run(world, "eurosat") == 0
    assert_complete(world)
    err = capsys.readouterr().err
    for reason in ("404", "web page", "is no archive", "should hold 2750, but holds README"):
        assert reason in err


def test_only_sources_of_the_kind_asked_for_are_used(world, capsys):
    world.entry["sources"].append({"mirror": [{"url": world.server.put("copy.zip", world.archive)}]})
    assert run(world, "eurosat", "--source", "mirror") == 0
    assert world.server.ranges("EuroSAT.zip") == [] and world.server.ranges("copy.zip") == [None]


def test_when_nothing_works_the_error_says_what_to_do_by_hand(world, capsys):
    world.server.files.clear()
    assert run(world, "eurosat") == 1
    err = capsys.readouterr().err
    lacking = "EuroSAT: there is still no split_zhou_EuroSAT.json, 2750"
    assert f"{lacking}: run again later, or download what --dry-run shows into {world.folder} with a browser" in err
    assert "Error: not complete: EuroSAT" in err


def test_an_archive_that_the_user_downloaded_is_used_and_kept(world):
    world.folder.mkdir(parents=True)
    (world.folder / "EuroSAT.zip").write_bytes(world.archive)
    assert run(world, "eurosat") == 0
    assert world.server.ranges("EuroSAT.zip") == []
    assert (world.folder / "EuroSAT.zip").read_bytes() == world.archive


def test_what_the_user_has_downloaded_goes_before_what_comes_first_in_the_catalogue(world):
    world.entry["sources"].insert(0, {"mirror": [{"url": world.server.put("copy.zip", world.archive)}]})
    world.folder.mkdir(parents=True)
    (world.folder / "EuroSAT.zip").write_bytes(world.archive)
    assert run(world, "eurosat") == 0
    assert [path for path, _ in world.server.log] == ["/split.json"]


def test_a_wrong_archive_of_the_user_is_not_used(world, capsys):
    world.folder.mkdir(parents=True)
    (world.folder / "EuroSAT.zip").write_bytes(world.archive[:1000])
    assert run(world, "eurosat") == 0
    assert "has 1,000 bytes instead of" in capsys.readouterr().err
    assert files_in(world.folder / "2750") == IMAGES


def test_ctrl_c_leaves_nothing_half_done_and_the_same_command_goes_on(world, monkeypatch, capsys):
    world.server.tricks["/EuroSAT.zip"] = [{"cut": 60_000}]
    with monkeypatch.context() as patch:
        patch.setattr(downloader, "_may_pass", lambda error: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(world, "eurosat") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (world.folder / "2750").exists()
    assert run(world, "eurosat") == 0
    assert world.server.ranges("EuroSAT.zip") == [None, "bytes=60000-"]
    assert_complete(world)


def test_ctrl_c_while_unpacking_leaves_no_image_folder(world, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("dassl.utils.archives._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(world, "eurosat") == 130
    assert not (world.folder / "2750").exists()
    assert run(world, "eurosat") == 0
    assert world.server.ranges("EuroSAT.zip") == [None]  # the verified archive was still there
    assert_complete(world)


def test_a_full_disk_is_found_before_anything_is_downloaded(world, capsys):
    world.entry["unpacked"] = 10**18
    assert run(world, "eurosat", "--yes") == 1
    assert "free, and" in capsys.readouterr().err and world.server.log == []


def test_what_an_earlier_run_has_downloaded_needs_no_room_again(world, monkeypatch, capsys):
    needed = len(world.archive) + world.entry["unpacked"]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=needed - 60_000))
    assert run(world, "eurosat") == 1
    part = world.folder / ".fetch" / world.entry["sources"][0]["official"][0]["sha256"][:8] / "EuroSAT.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(world.archive[:60_000])
    assert run(world, "eurosat") == 0
    assert world.server.ranges("EuroSAT.zip") == ["bytes=60000-"]


def test_a_large_download_needs_a_yes(world, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "LARGE", 1000)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run(world, "eurosat") == 1
    assert "add --yes" in capsys.readouterr().err and world.server.log == []
    terminal = io.StringIO("n\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert run(world, "eurosat") == 1
    assert "nothing downloaded" in capsys.readouterr().err and world.server.log == []
    assert run(world, "eurosat", "--yes") == 0


def test_one_dataset_that_fails_leaves_the_others_their_turn(world, capsys):
    dtd = world.entry | {"name": "DescribableTextures", "sources": [], "files": [], "images": {"images": []}}
    world.catalogue["datasets"] = {"dtd": dtd, "eurosat": world.entry}
    assert run(world, "all") == 1
    assert_complete(world)
    assert "not complete: DescribableTextures (" in capsys.readouterr().err


def test_runs_started_together_download_once(world):
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: run(world, "eurosat"), range(3))) == [0, 0, 0]
    assert world.server.ranges("EuroSAT.zip") == [None]
    assert_complete(world)


def test_the_hub_can_be_another_host(world, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{world.server.base}/")
    world.entry["sources"][0]["official"][0]["url"] = "https://huggingface.co/EuroSAT.zip"
    assert run(world, "eurosat") == 0
    assert_complete(world)


# ---- the split files ---------------------------------------------------------------------------------------


def test_another_split_under_the_official_name_is_refused_by_every_source(world, capsys):
    other = SPLIT | {"val": [["River/River_2.jpg", 0, "River"]]}
    world.split_file["sources"][:0] = [{"drive": {"id": "some-id"}}]
    world.server.put("drive-some-id", json.dumps(other).encode())
    assert run(world, "eurosat") == 0
    assert "is not the published split_zhou_EuroSAT.json" in capsys.readouterr().err
    assert_complete(world)


def test_a_split_file_that_is_there_and_wrong_is_kept_and_named(world, capsys):
    world.folder.mkdir(parents=True)
    own = world.folder / "split_zhou_EuroSAT.json"
    own.write_text("{}")
    assert run(world, "eurosat") == 1
    assert f"{own} is not the published split_zhou_EuroSAT.json: move it away" in capsys.readouterr().err
    assert own.read_text() == "{}"


def test_a_copy_that_differs_in_its_line_end_is_the_same_split(world):
    world.server.put("split.json", json.dumps(SPLIT).encode() + b"\n")
    assert run(world, "eurosat") == 0


def test_splits_without_a_published_hash_are_known_by_numbers_and_picks(tmp_path):
    def split(train, test):
        rows = {"train": train, "val": [["a/v.jpg", 0, "a"]] * 5, "test": [["a/t.jpg", 0, "a"]] * test}
        (tmp_path / "split.json").write_text(json.dumps(rows))
        return read_split(tmp_path / "split.json")

    rows = [[f"a/{n}.jpg", 0, "a"] for n in range(20)]
    facts = Published(1, {"train": 20, "val": 5, "test": 3}, picks=picks_hash(select_shots(split(rows, 3), 16, 1)))
    assert split_problem(split(rows, 3), facts) == ""
    assert split_problem(split(rows, 4), facts) == "it has 4 test images instead of 3"
    assert "few-shot picks have the hash" in split_problem(split(rows[::-1], 3), facts)


def test_a_real_split_file_is_recognised():
    folder = Path(__file__).parents[2].parent / "shared/data/splits"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/splits")
    dtd, pets = "split_zhou_DescribableTextures.json", "split_zhou_OxfordPets.json"
    assert sources.file_problem(dtd, folder / dtd, DescribableTextures.published) is None
    assert sources.file_problem(dtd, folder / pets, DescribableTextures.published) == f"is not the published {dtd}"


def test_class_names_are_read_from_a_few_shot_index(world, monkeypatch, capsys):
    names = {"n01443537": "goldfish", "n01440764": "tench"}
    rows = [{"impath": f"./x/train/{wnid}/1.JPEG", "classname": name} for wnid, name in names.items()]
    lines = ["n01440764 tench", "n01443537 goldfish"]
    monkeypatch.setattr("datasets.imagenet.CLASSNAMES", lines_hash(lines))
    index = world.server.put("index.json", json.dumps({"train": {"data": rows}}).encode())
    other = world.server.put("other.json", b"[1]")
    world.catalogue["files"]["classnames.txt"] = {
        "sources": [{"drive": {"id": "gone"}}, {"mirror": {"url": other}}, {"mirror": {"url": index}}]
    }
    world.entry["files"].append("classnames.txt")
    assert run(world, "eurosat") == 0
    assert (world.folder / "classnames.txt").read_text().splitlines() == lines
    assert "does not hold the published class names" in capsys.readouterr().err


# ---- Google Drive ------------------------------------------------------------------------------------------


def test_without_gdown_a_drive_page_is_answered_with_how_to_get_it(world, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gdown", None)
    world.entry["sources"] = [{"drive": [{"id": "big", "name": "EuroSAT.zip"}]}]
    world.server.put("drive-big", PAGE)
    assert run(world, "eurosat") == 1
    assert re.search("drive source failed: .*web page.*Quota exceeded.*pip install gdown", capsys.readouterr().err)


@pytest.mark.parametrize("outcome", ["works", "returns None", "raises", "page"])
def test_gdown_is_asked_where_it_is_installed(world, monkeypatch, capsys, outcome):
    def download(id, output, resume):
        assert id == "big" and resume
        if outcome == "raises":
            raise RuntimeError("Too many users\nhave viewed")
        Path(output).write_bytes(world.archive if outcome == "works" else PAGE)
        return None if outcome == "returns None" else output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    world.entry["sources"] = [{"drive": [{"id": "big", "name": "EuroSAT.zip"}]}]
    assert run(world, "eurosat") == (outcome != "works")
    reasons = {"raises": "Too many users have viewed", "returns None": "could not download", "page": "is no archive"}
    assert reasons.get(outcome, "") in capsys.readouterr().err


# ---- folders -----------------------------------------------------------------------------------------------


LAYOUTS = {
    "as expected": zipped(under("2750")),
    "in the dataset's folder, with caches of CoOp and leftovers of macOS": zipped(
        under("eurosat/2750")
        | {"eurosat/split_fewshot/shot_1-seed_1.pkl": b"", "__MACOSX/._x": b"", "eurosat/._y": b""}
    ),
    "nested twice": zipped(under("EuroSAT/2750/2750/2750")),
    "with another name": tarred(under("EuroSAT_RGB")),
    "an archive in an archive": zipped({"eurosat/2750.tar.gz": tarred(under("2750"))}),
    "a tar that is named .zip": tarred(under("2750"), "w"),
    "with a wrong split": zipped(under("2750") | {"split_zhou_EuroSAT.json": b"{}"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_archives_of_any_shape_end_in_the_expected_folders(world, layout):
    world.entry["sources"] = [{"mirror": [{"url": world.server.put("any.zip", LAYOUTS[layout])}]}]
    assert run(world, "eurosat") == 0
    assert_complete(world)


@pytest.mark.parametrize("place", ["EuroSAT_RGB", "2750/2750", "eurosat/2750", "2750-outer/2750"])
def test_what_the_user_has_unpacked_elsewhere_is_moved_and_not_downloaded(world, place, capsys, monkeypatch):
    for name, content in IMAGES.items():
        (world.folder / place / name).parent.mkdir(parents=True, exist_ok=True)
        (world.folder / place / name).write_bytes(content)
    monkeypatch.setattr(fetch, "LARGE", 1)  # a question would end the command here
    assert run(world, "eurosat", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "they are moved, not downloaded" in out and "to download" not in out and "EuroSAT.zip" not in out
    assert run(world, "eurosat") == 0
    assert world.server.ranges("EuroSAT.zip") == []
    assert_complete(world)


@pytest.mark.parametrize("link", ["eurosat", "2750", "EuroSAT_RGB"])
@pytest.mark.parametrize("inside", ["2750", "EuroSAT_RGB", "2750/2750"])
def test_what_lies_behind_a_link_stays_there_and_is_linked_to(world, link, inside, tmp_path):
    store = tmp_path / "store"
    for name, content in under(inside).items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
    (store / "mine.txt").write_bytes(b"mine")
    before = files_in(store)
    world.folder.mkdir(parents=True)
    target = store if link == "eurosat" else store / inside.split("/")[0]
    (world.folder / link).symlink_to(os.path.relpath(target, world.folder))
    assert run(world, "eurosat") == 0
    assert files_in(store) == before and world.server.ranges("EuroSAT.zip") == []
    assert files_in(world.folder / "2750") == IMAGES


def test_a_split_that_comes_with_the_images_is_used(world):
    world.server.files.pop("/split.json")
    with_split = zipped(under("2750") | {"split_zhou_EuroSAT.json": json.dumps(SPLIT).encode()})
    world.entry["sources"] = [{"mirror": [{"url": world.server.put("any.zip", with_split)}]}]
    assert run(world, "eurosat") == 0
    assert_complete(world)


def test_several_archives_make_up_one_dataset_and_other_files_stay(world):
    world.entry |= {"images": {"2750": [], "test": []}}
    world.entry["sources"] = [
        {
            "official": [
                {"url": world.server.put("a.zip", zipped(under("2750")))},
                {"url": world.server.put("b.tgz", tarred({"test/x.jpg": b"x"}))},
            ]
        }
    ]
    (world.folder / "2750").mkdir(parents=True)
    (world.folder / "2750" / "mine.jpg").write_bytes(b"mine")
    assert run(world, "eurosat") == 0
    assert files_in(world.folder / "2750") == {"mine.jpg": b"mine"}  # there before: not touched
    assert files_in(world.folder / "test") == {"x.jpg": b"x"}


def test_an_empty_folder_is_filled(world):
    (world.folder / "2750").mkdir(parents=True)
    assert run(world, "eurosat") == 0
    assert_complete(world)


def test_a_folder_under_another_accepted_name_is_used(world):
    (world.root / "EuroSAT").mkdir(parents=True)
    assert run(world, "eurosat") == 0
    assert (world.root / "EuroSAT" / "2750").is_dir() and not world.folder.exists()


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_damaged_archive_without_a_hash_is_removed_and_fetched_again(world, capsys, keep):
    good = tarred(under("2750"))
    url = world.server.put("any.tgz", good, {"body": good[: int(keep * len(good))]})
    world.entry["sources"] = [{"mirror": [{"url": url}]}]
    assert run(world, "eurosat") == 1
    assert "is damaged" in capsys.readouterr().err and not (world.folder / "2750").exists()
    assert run(world, "eurosat") == 0
    assert_complete(world)


def test_an_archive_that_grows_beyond_its_dataset_is_stopped(world, capsys):
    world.entry["unpacked"] = 1000
    assert run(world, "eurosat") == 1
    assert "far more than it should" in capsys.readouterr().err
    assert not (world.folder / "2750").exists()
