"""python -m datasets.fetch against a server on this machine; the catalogue's own entries at the end."""

import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError
from dassl.utils import download as downloader
from dassl.utils.download import download_file, part_of
from datasets import fetch, sources
from datasets.dtd import DescribableTextures
from datasets.eurosat import EuroSAT
from datasets.imagenet import ImageNet
from datasets.published import Published, lines_hash, picks_hash, split_problem
from datasets.splits import read_split, select_shots, split_hash

PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota\n exceeded</title></head></html>"
SPLIT = {part: [[f"River/River_{n}.jpg", 0, "River"]] for n, part in enumerate(["train", "val", "test"])}
IMAGES = {f"River/River_{n}.jpg": bytes([n]) * 50_000 for n in range(3)}


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def under(folder, files=IMAGES):
    return {f"{folder}/{name}": content for name, content in files.items()}


def hashes(content, *algorithms):
    return {"size": len(content)} | {name: hashlib.new(name, content).hexdigest() for name in algorithms}


@pytest.fixture
def world(server, tmp_path, monkeypatch):
    """A catalogue with one small dataset whose archive and split the server has; returns a namespace of it all."""
    archive, split = zipped(under("2750")), json.dumps(SPLIT).encode()
    (tmp_path / "made.json").write_bytes(split)
    eurosat = {
        "name": "EuroSAT",
        "licence": "MIT",
        "unpacked": 200_000,
        "files": ["split_zhou_EuroSAT.json"],
        "images": {"2750": ["EuroSAT_RGB"]},
        "sources": [{"official": [{"url": server.put("EuroSAT.zip", archive)} | hashes(archive, "sha256", "md5")]}],
    }
    split_file = {"sources": [{"mirror": {"url": server.put("split.json", split)}}]}
    facts = Published(1, {"train": 1, "val": 1, "test": 1}, split_hash(read_split(tmp_path / "made.json")))
    monkeypatch.setattr(EuroSAT, "published", facts)
    catalogue = {"datasets": {"eurosat": eurosat}, "files": {"split_zhou_EuroSAT.json": split_file}}
    monkeypatch.setattr(sources, "catalogue", lambda: catalogue)
    monkeypatch.setattr(sources, "DRIVE_URL", f"{server.base}/drive-")
    root = tmp_path / "data"
    return types.SimpleNamespace(
        server=server, archive=archive, entry=eurosat, split_file=split_file, catalogue=catalogue, root=root,
        folder=root / "eurosat",
    )  # fmt: skip


def run(world, *arguments):
    return fetch.main([*arguments, "--root", str(world.root)])


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_complete(world):
    expected = under("2750") | {"split_zhou_EuroSAT.json": json.dumps(SPLIT).encode()}
    assert files_in(world.folder) == expected


# ---- one file ----------------------------------------------------------------------------------------------

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
    with pytest.raises(SystemExit):
        run(world)
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
    for reason in ("404", "web page", "is no archive", "the archives hold no 2750, but README"):
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
def test_what_the_user_has_unpacked_elsewhere_is_moved_and_not_downloaded(world, place):
    for name, content in IMAGES.items():
        (world.folder / place / name).parent.mkdir(parents=True, exist_ok=True)
        (world.folder / place / name).write_bytes(content)
    assert run(world, "eurosat") == 0
    assert world.server.ranges("EuroSAT.zip") == []
    assert_complete(world)


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


# ---- ImageNet ----------------------------------------------------------------------------------------------

WNIDS = [f"n{n:08d}" for n in range(20)]


@pytest.fixture
def imagenet(world, monkeypatch):
    """ImageNet with 20 classes of one training and one validation image; its archives are in `archives`."""
    listing = "".join(f"mkdir -p {w}\n" for w in WNIDS)
    listing += "".join(f"mv ILSVRC2012_val_{n:08d}.JPEG {w}/{chr(9) * (n % 2)}\n" for n, w in enumerate(WNIDS, 1))
    train = tarred({f"{w}.tar": tarred({f"{w}_1.JPEG": b"t"}, "w") for w in WNIDS}, "w")
    val = tarred({f"ILSVRC2012_val_{n:08d}.JPEG": str(n).encode() for n in range(1, 21)}, "w")
    entry = {
        "name": "ImageNet", "licence": "terms", "unpacked": 20_000_000, "files": [], "sources": [],
        "images": {"images/train": [], "images/val": []},
        "archives": {
            "ILSVRC2012_img_train.tar": {"what": "Training", "about": 2e9, "md5": hashlib.md5(train).hexdigest()},
            "ILSVRC2012_img_val.tar": {"what": "Validation", "about": 1e9, "md5": hashlib.md5(val).hexdigest()},
        },
    }  # fmt: skip
    world.catalogue["datasets"]["imagenet"] = entry
    world.catalogue["files"]["valprep.sh"] = {
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "sources": [{"official": {"url": world.server.put("valprep.sh", listing.encode())}}],
    }
    facts = Published(20, {"train": 20, "val": 20}, ids=lines_hash(WNIDS))
    monkeypatch.setattr(ImageNet, "published", facts)
    folder = world.root / "imagenet"
    folder.mkdir(parents=True)
    archives = {"ILSVRC2012_img_train.tar": train, "ILSVRC2012_img_val.tar": val}
    return types.SimpleNamespace(folder=folder, archives=archives, world=world)


def test_imagenet_without_archives_prints_the_steps_and_fails(imagenet, capsys):
    assert run(imagenet.world, "imagenet") == 1
    captured = capsys.readouterr()
    assert "https://image-net.org" in captured.out and f"into {imagenet.folder}" in captured.out
    assert "ILSVRC2012_img_train.tar  Training, 2.0 GB, MD5 " in captured.out
    assert f"no {imagenet.folder}/images/train" in captured.err


def test_imagenet_is_unpacked_from_the_users_archives_sorted_and_counted(imagenet, capsys):
    for name, content in imagenet.archives.items():
        (imagenet.folder / name).write_bytes(content)
    assert run(imagenet.world, "imagenet") == 0
    found = files_in(imagenet.folder / "images")
    assert len(found) == 40 and found["train/n00000007/n00000007_1.JPEG"] == b"t"
    assert found["val/n00000007/ILSVRC2012_val_00000008.JPEG"] == b"8"
    assert all((imagenet.folder / name).is_file() for name in imagenet.archives)


def test_a_flat_validation_folder_is_sorted_in_place_even_after_an_interruption(imagenet):
    val = imagenet.folder / "images" / "val"
    for n, wnid in enumerate(WNIDS, 1):
        (imagenet.folder / "images" / "train" / wnid).mkdir(parents=True)
        (imagenet.folder / "images" / "train" / wnid / "x.JPEG").touch()
        place = val / wnid if n <= 8 else val
        place.mkdir(parents=True, exist_ok=True)
        (place / f"ILSVRC2012_val_{n:08d}.JPEG").touch()
    assert run(imagenet.world, "imagenet") == 0
    assert not list(val.glob("*.JPEG")) and len(list(val.glob("*/*.JPEG"))) == 20


def test_a_broken_imagenet_archive_and_missing_images_are_named(imagenet, capsys):
    (imagenet.folder / "ILSVRC2012_img_val.tar").write_bytes(b"x")
    assert run(imagenet.world, "imagenet") == 1
    assert "ILSVRC2012_img_val.tar has the wrong MD5" in capsys.readouterr().err
    (imagenet.folder / "ILSVRC2012_img_val.tar").unlink()
    (imagenet.folder / "images" / "train" / "n00000001").mkdir(parents=True)
    (imagenet.folder / "images" / "val").mkdir()
    assert run(imagenet.world, "imagenet") == 1
    err = capsys.readouterr().err
    assert "the 1 folders in" in err and "val has 0 images in class folders instead of" in err


# ---- the catalogue -----------------------------------------------------------------------------------------


def test_the_catalogue_has_the_fifteen_datasets_with_the_folders_and_files_of_their_loaders():
    entries = sources.catalogue()["datasets"]
    configs = {path.stem for path in (Path(fetch.__file__).parents[1] / "configs/datasets").glob("*.yaml")}
    assert len(entries) == 15 and set(entries) <= configs
    for entry in entries.values():
        cls = DATASET_REGISTRY.get(entry["name"])
        assert [cls.split_file] == [name for name in entry["files"] if name.startswith("split")] or not cls.split_file
        assert cls.image_dir in (*entry["images"], *(name.split("/")[0] for name in entry["images"]), ".")
        assert entry["licence"] and entry["unpacked"] > 1e7 and set(entry["files"]) <= set(sources.catalogue()["files"])


def all_sources():
    for entry in sources.catalogue()["datasets"].values():
        for source in entry["sources"]:
            ((kind, archives),) = source.items()
            yield from ((kind, archive) for archive in archives)
    for entry in sources.catalogue()["files"].values():
        for source in entry["sources"]:
            ((kind, place),) = source.items()
            yield kind, place


def test_every_source_is_of_a_known_kind_with_an_https_address_or_a_drive_id():
    for kind, archive in all_sources():
        assert kind in fetch.KINDS and set(archive) <= {"url", "host", "path", "id", "name", "size", "md5", "sha256"}
        assert ("id" in archive) == (kind == "drive") != ("url" in archive or {"host", "path"} <= set(archive))
        if kind == "drive":
            assert re.fullmatch(r"[\w-]{33}", archive["id"])
        else:
            parts = urlparse(sources.link(archive))
            assert parts.scheme == "https" and parts.path.rsplit("/", 1)[1] and "{" not in sources.link(archive)


def test_every_archive_has_a_name_and_every_dataset_without_archives_of_ones_own_has_sources():
    for entry in sources.catalogue()["datasets"].values():
        assert bool(entry["sources"]) != ("archives" in entry)
        assert all(sources.name_of(archive) for source in entry["sources"] for (archive, *_) in source.values())


def test_hashes_and_sizes_are_well_formed():
    described = [archive for _, archive in all_sources()]
    described += sources.catalogue()["files"].values()
    described += sources.catalogue()["datasets"]["imagenet"]["archives"].values()
    lengths = {"md5": 32, "sha256": 64}
    for facts in described:
        for name in lengths.keys() & facts.keys():
            assert re.fullmatch(f"[0-9a-f]{{{lengths[name]}}}", facts[name])
        assert facts.get("size", 1) > 0
