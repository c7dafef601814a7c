from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfm_rl.data.files import (
    alone_writing,
    hash_file,
    hash_folder,
    hash_path,
    json_with_list,
    read_versioned_json,
    remove_abandoned,
    replace_folder_on_success,
    replace_on_success,
    scratch_folder,
    write_json,
    write_parts,
    write_text,
    write_versioned_json,
)
from medfm_rl.errors import DataError, ModelError


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_written_where_it_belongs_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.nii.gz"
    with replace_on_success(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert names(tmp_path) == ["new", "new/folder", "new/folder/a.nii.gz"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replace_on_success(path) as temporary:
        temporary.write_text("new, ")
        assert path.read_text() == "old"
        with temporary.open("a") as file:
            file.write("and whole")
        assert path.read_text() == "old"
    assert path.read_text() == "new, and whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, DataError])
@pytest.mark.parametrize("old", ["old", None])
def test_an_exception_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, error: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def stop_half_way() -> None:
        with replace_on_success(path) as temporary:
            temporary.write_text("half of")
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        stop_half_way()
    assert names(tmp_path) == ([] if old is None else ["a.txt"])
    assert old is None or path.read_text() == old


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.write_text", "pathlib.Path.replace"])
def test_a_full_disk_is_named_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(call, full_disk)
    with pytest.raises(DataError, match=r"a\.json: cannot be written \(No space left on device\)"):
        write_json(path, {"old": False})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": True}
    assert names(tmp_path) == ["a.json"]


def test_a_block_that_writes_nothing_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(DataError, match=r"a\.txt: cannot be written"), replace_on_success(path):
        pass
    assert path.read_text() == "old"


def test_what_stands_in_the_way_is_named_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "new")
    (tmp_path / "taken.txt").mkdir()
    with pytest.raises(DataError, match=r"taken\.txt: cannot be written"):
        write_text(tmp_path / "taken.txt", "new")
    assert (tmp_path / "file").read_text() == "kept"
    assert names(tmp_path) == ["file", "taken.txt"]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_survives_the_way_through_a_file(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_text_is_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "cœur")
    assert (tmp_path / "a.txt").read_bytes() == "cœur".encode()


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    with replace_folder_on_success(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a.txt").write_text("a")
        assert not folder.exists()
    assert names(tmp_path / "new") == ["model", "model/sub", "model/sub/a.txt"]


def test_a_folder_gets_its_name_when_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a folder that is there would else hold empty files, and count as a finished stage."""
    folder = tmp_path / "model"
    synced: list[int] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        assert not folder.exists()
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", record)
    with replace_folder_on_success(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "weights").write_text("weights")
        (temporary / "settings").write_text("settings")
        (temporary / "link").symlink_to("nowhere")
    parts = [folder, folder / "sub", folder / "sub" / "weights", folder / "settings"]
    assert sorted(synced) == sorted(path.stat().st_ino for path in parts)


@pytest.mark.parametrize("link", [False, True])
def test_an_empty_folder_is_filled(tmp_path: Path, link: bool) -> None:
    """Also where it is a link, to a larger disk for one."""
    folder = tmp_path / "empty"
    if link:
        (tmp_path / "disk").mkdir()
        folder.symlink_to(tmp_path / "disk")
    else:
        folder.mkdir()
    with replace_folder_on_success(folder) as temporary:
        (temporary / "a.txt").write_text("a")
    assert (folder / "a.txt").read_text() == "a"
    assert folder.is_symlink() == link
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_the_current_folder_can_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with replace_folder_on_success(Path()) as temporary:
        (temporary / "a.txt").write_text("a")
    assert names(tmp_path) == ["here", "here/a.txt"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_already_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "model"
    if kind == "folder":
        place.mkdir()
        (place / "precious").write_text("kept")
    else:
        place.write_text("kept")
    before = names(tmp_path)
    with (
        pytest.raises(DataError, match="model: already exists and is not empty; give a new folder"),
        replace_folder_on_success(place),
    ):
        pytest.fail("the block must not start")
    assert names(tmp_path) == before
    assert (place / "precious" if kind == "folder" else place).read_text() == "kept"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_no_folder(tmp_path: Path, error: type[BaseException]) -> None:
    def stop_half_way() -> None:
        with replace_folder_on_success(tmp_path / "model") as temporary:
            (temporary / "half").write_text("half of")
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        stop_half_way()
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.write_text", "pathlib.Path.replace", "pathlib.Path.mkdir"])
def test_a_full_disk_is_named_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(call, full_disk)
    with (
        pytest.raises(DataError, match=r"model: cannot be written \(No space left on device\)"),
        replace_folder_on_success(tmp_path / "model") as temporary,
    ):
        (temporary / "a").write_text("half of")
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_a_file_hash_is_the_sha_256_of_its_content(tmp_path: Path) -> None:
    content = b"abc" * 100_000
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_named_as_such_and_not_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    make_folder(tmp_path / "d", {"a": "x", "b": "y"})
    locked, opened = tmp_path / "d" / "b", Path.open

    def refusing(self: Path, *args: object, **kwargs: object) -> object:
        if self == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=r"/d/b: you have no permission to read it"):
        hash_path(locked if place == "file" else tmp_path / "d")


def test_what_the_disk_does_not_give_out_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/none: there is no such file"):
        hash_path(tmp_path / "none")
    with pytest.raises(DataError, match=r": cannot be read \(Is a directory\)"):
        hash_file(tmp_path)


def make_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


FILES = {"a": "1", "b": "2", "sub/c": "3"}


def test_a_folder_hash_sees_names_and_contents_and_not_place_order_or_time(tmp_path: Path) -> None:
    first = hash_folder(make_folder(tmp_path / "first", FILES))
    again = make_folder(tmp_path / "again", dict(reversed(FILES.items())))
    os.utime(again / "a", (time.time() - 1e6,) * 2)
    assert hash_folder(again) == first
    assert len(first) == 64


def test_what_file_managers_and_interpreters_leave_is_no_part_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    before = hash_folder(tmp_path)
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("y")
    assert hash_folder(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [
        {**FILES, "a": "1 "},
        {**FILES, "d": ""},
        {"a": "1", "b": "2"},
        {"a": "2", "b": "1", "sub/c": "3"},
        {"a": "1", "b": "2", "c": "3"},
        {"a": "1", "b": "2", "sub/d": "3"},
    ],
    ids=["content", "added", "removed", "swapped", "moved", "renamed"],
)
def test_a_folder_hash_sees_any_change(tmp_path: Path, files: dict[str, str]) -> None:
    changed = hash_folder(make_folder(tmp_path / "changed", files))
    assert changed != hash_folder(make_folder(tmp_path / "first", FILES))


def test_what_a_killed_process_had_begun_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = ["12.nii.gz", ".2024.notes.md", ".unfinished-work", "ppo/00002/actor.safetensors"]
    # The first as version 0.1 named them, by the number of the process.
    begun = [".unfinished-4711-config.yaml", "ppo/.unfinished-0a1b2c3d4e5f6071-00004/actor.safetensors"]
    begun.append("ppo/.unfinished-0a1b2c3d4e5f6071-00004/.unfinished-1a1b2c3d4e5f6071-inner.json")
    for name in [*kept, *begun]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    remove_abandoned(tmp_path)
    assert {name for name in names(tmp_path) if (tmp_path / name).is_file()} == set(kept)


def test_a_process_that_is_killed_leaves_what_is_then_removed(tmp_path: Path) -> None:
    """The names are those that the writers give."""
    code = (
        "import os, signal, sys; from pathlib import Path; from medfm_rl.data.files import *\n"
        "with replace_on_success(Path(sys.argv[1]) / 'a.json') as file:\n"
        "    file.write_text('{')\n"
        "    with replace_folder_on_success(Path(sys.argv[1]) / 'b') as folder:\n"
        "        (folder / 'half').write_text('')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    remove_abandoned(tmp_path)
    assert names(tmp_path) == []


def test_a_versioned_file_comes_back_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_versioned_json(path, 2, {"name": [1, None, "x"]})
    assert read_versioned_json(path, 2, "do something") == {"format": 2, "name": [1, None, "x"]}
    # Version 0.1 wrote no number.
    path.write_text('{"name": 1}')
    assert read_versioned_json(path, 2, "do something") == {"format": 1, "name": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 3}', "format 3 was written by a newer version of medfm-rl; update"),
        ('{"format": "two"}', "\"format\" is 'two' and must be a number from 1 on"),
        ('{"format": 0}', '"format" is 0 and must be a number from 1 on'),
        ("[1]", "not a JSON object; make it again"),
        ("{", "not a JSON file .*; make it again"),
    ],
)
def test_a_versioned_file_that_cannot_be_read_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=rf"a\.json: {message}"):
        read_versioned_json(path, 2, "make it again", ModelError)


def test_a_versioned_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json: there is no such file; make it again"):
        read_versioned_json(tmp_path / "a.json", 2, "make it again")


def test_a_scratch_folder_of_a_killed_process_is_removed_by_who_writes_there_next(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from medfm_rl.data.files import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1]), 'calibrating') as folder:\n"
        "    (folder / 'a.pt').write_text('a')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert process.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    with alone_writing(tmp_path):
        assert "kept.txt" in names(tmp_path)
        assert not [name for name in names(tmp_path) if "calibrating" in name]


def test_a_scratch_folder_is_there_as_long_as_the_block(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "calibrating") as folder:
        assert folder.parent == tmp_path
    assert names(tmp_path) == []


@pytest.mark.parametrize("items", [[], [{}], [{"a": [1, {"b": "line\nline \u2028 ]"}]}, "x, [", 0.1, None, [[]]]])
def test_a_long_list_is_written_in_parts_as_it_is_written_at_once(tmp_path: Path, items: list[object]) -> None:
    around = {"format": 2, "other": {"cases": []}, "text": '\n  "cases": []'}
    content = {**around, "cases": [], "last": [1, 2]}
    write_json(tmp_path / "at-once.json", {**content, "cases": items})
    write_parts(tmp_path / "in-parts.json", json_with_list(content, "cases", iter(items)))
    assert (tmp_path / "in-parts.json").read_bytes() == (tmp_path / "at-once.json").read_bytes()
