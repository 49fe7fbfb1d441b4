"""The writer of files: each appears whole or not at all, under a name that is checked before the work."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from meddelinea.endings import MASK_SUFFIXES, SCAN_SUFFIXES, by_stem, ending, stem, visible
from meddelinea.errors import InputRefusedError
from meddelinea.files import (
    append_line,
    ensure_writable,
    remove_all_unfinished,
    remove_unfinished,
    whole,
    whole_folder,
    whole_together,
    write_json,
    write_text,
)
from meddelinea.json_files import read_object

#: Writes "new" wherever it may, and dies before the given number of changes to the folder, counted by the interpreter.
KILLED = """
import os, signal, sys
from pathlib import Path
from meddelinea import files

folder, writer, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
changes = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}

def watch(event, arguments):
    global left
    if event in changes and str(arguments[0]).startswith(str(folder)):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

sys.addaudithook(watch)
if writer == "whole_together":
    with files.whole_together(folder / "mask.nii.gz", folder / "mask.json") as parts:
        for part in parts:
            part.write_text("new")
else:
    with files.whole_folder(folder / "model") as part:
        for name in ("a", "b"):
            (part / name).write_text("new")
"""


def contents(folder: Path) -> dict[str, str]:
    """The text of each file, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def killed_at_each_step(writer: str, folder: Path, begin: Callable[[], Any]) -> list[dict[str, str]]:
    """What a writer leaves that is killed before its first change, its second, and so on, and when it is let finish."""
    left = []
    while True:
        begin()
        done = subprocess.run([sys.executable, "-c", KILLED, folder, writer, str(len(left))], check=False)
        left.append({name: text for name, text in contents(folder).items() if not name.startswith(".")})
        if done.returncode == 0:
            return left
        assert done.returncode == -signal.SIGKILL


# One file


def test_a_file_appears_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    for there, text in ((None, "first"), ("first", "second")):
        with whole(path) as part:
            part.write_text(text[:3])
            assert (path.read_text() if path.exists() else None) == there
            assert (part.parent, part.name[0], part.name[-7:]) == (tmp_path, ".", ".nii.gz")
            part.write_text(text)
        assert contents(tmp_path) == {"mask.nii.gz": text}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with whole(path) as one:
        one.write_text("one, and more")
        with whole(path) as two:
            two.write_text("two")
        assert path.read_text() == "two"
    assert contents(tmp_path) == {"a.json": "one, and more"}


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text("text", tmp_path / "a.txt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_json_that_cannot_be_written_leaves_what_stood_there(tmp_path: Path) -> None:
    write_json({"volume_ml": 1.5, "name": "Müller"}, tmp_path / "a.json")
    for document in ({"volume_ml": float("nan")}, {"volume_ml": float("inf")}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(document, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_bytes().decode("utf-8")) == {"volume_ml": 1.5, "name": "Müller"}
    assert len(list(tmp_path.iterdir())) == 1


def test_lines_are_added_in_order(tmp_path: Path) -> None:
    for line in ("1", "2", "ü"):
        append_line(line, tmp_path / "lines.txt")
    assert (tmp_path / "lines.txt").read_bytes() == "1\n2\nü\n".encode()
    with pytest.raises(InputRefusedError, match="No such file"):
        append_line("3", tmp_path / "absent" / "lines.txt")


# Writing that fails, in each kind of writer


def writers(folder: Path) -> dict[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[Any], Any]]]:
    """Each writer of a folder, and what writes its last part."""
    return {
        "one file": (lambda: whole(folder / "a.json"), lambda part: part.write_text("new")),
        "two files": (
            lambda: whole_together(folder / "a.json", folder / "b.json"),
            lambda parts: [part.write_text("new") for part in parts],
        ),
        "a folder": (lambda: whole_folder(folder / "model"), lambda part: (part / "a").write_text("new")),
    }


@pytest.mark.parametrize("kind", ["one file", "two files", "a folder"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("older", [True, False])
def test_a_disk_that_takes_no_more_is_refused_and_changes_nothing(
    tmp_path: Path, kind: str, code: int, older: bool
) -> None:
    if older:
        (tmp_path / "model").mkdir()
        for name in ("a.json", "b.json", "model/a", "model/b"):
            (tmp_path / name).write_text("old")
    before = contents(tmp_path)
    begin, write = writers(tmp_path)[kind]

    def fill_the_disk() -> None:
        with begin() as part:
            write(part)
            raise OSError(code, os.strerror(code))

    with pytest.raises(InputRefusedError, match="cannot be written") as caught:
        fill_the_disk()
    assert os.strerror(code) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.code, caught.value.exit_code) == ("output", 3)
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["one file", "two files", "a folder"])
def test_a_writer_that_raises_changes_nothing(tmp_path: Path, kind: str) -> None:
    begin, write = writers(tmp_path)[kind]
    with begin() as part:
        write(part)
    before = contents(tmp_path)
    assert set(before.values()) == {"new"}
    with pytest.raises(KeyboardInterrupt), begin() as part:
        raise KeyboardInterrupt
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_of_two_files_none_is_replaced_where_one_is_missing(tmp_path: Path) -> None:
    files = tmp_path / "mask.nii.gz", tmp_path / "mask.json"
    for path in files:
        path.write_text("old")
    for written in range(2):
        with pytest.raises(InputRefusedError, match="No such file"), whole_together(*files) as parts:
            parts[written].write_text("new")
        assert contents(tmp_path) == {"mask.nii.gz": "old", "mask.json": "old"}


@pytest.mark.parametrize("folder", ["mask.nii.gz", "mask.json"])
def test_a_folder_in_the_place_of_one_file_leaves_the_other(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (other,) = {"mask.nii.gz", "mask.json"} - {folder}
    (tmp_path / other).write_text("old")

    def write() -> None:
        with whole_together(tmp_path / "mask.nii.gz", tmp_path / "mask.json") as parts:
            for part in parts:
                part.write_text("new")

    with pytest.raises(InputRefusedError, match="Is a directory"):
        write()
    assert contents(tmp_path) == {other: "old"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folders_files_are_open_to_whom_new_files_are(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "model") as part:
        (part / "codec").mkdir()
        (part / "codec" / "weights").touch(mode=0o600)
        (part / "config.json").touch()
    (tmp_path / "new").touch()
    expected = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["config.json", "weights"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {expected}


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("old")
    rename, refused = Path.rename, []

    def rename_once(path: Path, target: Path) -> Path:
        if target == tmp_path / "model" and not refused:
            refused.append(path)
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_once)
    with pytest.raises(InputRefusedError, match="Permission denied"), whole_folder(tmp_path / "model") as part:
        (part / "a").write_text("new")
    assert refused
    assert contents(tmp_path) == {"model/a": "old"}
    assert not list(tmp_path.glob(".*"))


# A process that is killed


def test_a_mask_never_stands_beside_the_sidecar_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def begin() -> None:
        for name in ("mask.nii.gz", "mask.json"):
            (folder / name).write_text("old")

    left = killed_at_each_step("whole_together", folder, begin)
    with_mask = [files for files in left if "mask.nii.gz" in files]
    assert {tuple(sorted(files.items())) for files in with_mask} == {
        (("mask.json", text), ("mask.nii.gz", text)) for text in ("old", "new")
    }
    assert len(with_mask) < len(left)  # one of the kills fell between
    assert len(left) > 5

    assert list(folder.glob(".*"))
    remove_all_unfinished(folder)
    assert contents(folder) == {"mask.nii.gz": "new", "mask.json": "new"}


def test_a_folder_is_the_old_one_the_new_one_or_none(tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def begin() -> None:
        (folder / "model").mkdir(parents=True, exist_ok=True)
        for name in ("a", "b", "c"):
            (folder / "model" / name).write_text("old")

    left = killed_at_each_step("whole_folder", folder, begin)
    old = {"model/a": "old", "model/b": "old", "model/c": "old"}
    new = {"model/a": "new", "model/b": "new"}
    assert [files for files in left if files not in (old, new, {})] == []
    assert (left[0], left[-1]) == (old, new)

    remove_unfinished(folder / "model")
    assert contents(folder) == new
    assert [path.name for path in folder.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["mask.nii.gz", "a+b (1) [x].nrrd", "model", "ä.dcm"])
def test_what_killed_writers_left_is_told_from_all_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    others = {f".{name}", f".{name}.backup", f".{name}.{'0' * 31}g.gz", "._" + name, f"x.{name}", "other.json"}
    for other in others:
        (tmp_path / other).write_text("mine")
    under_way = whole(path), whole_folder(path), whole(tmp_path / "other.json")
    part, folder, foreign = (writer.__enter__() for writer in under_way)
    for unfinished in (part, folder / "half", foreign):
        unfinished.write_text("half")

    remove_unfinished(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {*others, foreign.name}
    remove_all_unfinished(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == others


def test_nothing_is_removed_where_there_is_no_folder(tmp_path: Path) -> None:
    remove_unfinished(tmp_path / "absent" / "mask.nii.gz")
    remove_all_unfinished(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


# Names


@pytest.mark.parametrize(
    ("name", "suffix", "without"),
    [
        ("scan.nii.gz", ".nii.gz", "scan"),
        ("SCAN.NII.GZ", ".nii.gz", "SCAN"),
        ("a.b.nii", ".nii", "a.b"),
        ("scan.nhdr", ".nhdr", "scan"),
        ("scan.zip", ".zip", "scan"),
        ("scan.gz", None, "scan.gz"),
        ("scan", None, "scan"),
        (".nii.gz", None, ".nii.gz"),
        ("nii.gz", None, "nii.gz"),
        ("scan.nii.gz.txt", None, "scan.nii.gz.txt"),
    ],
)
def test_a_name_is_its_stem_and_its_ending(name: str, suffix: str | None, without: str) -> None:
    path = Path("folder.nii") / name
    assert ending(path, SCAN_SUFFIXES) == suffix
    assert stem(path) == without
    assert ending(Path("m.DCM"), MASK_SUFFIXES) == ".dcm"
    assert ending(Path("m.dcm"), SCAN_SUFFIXES) is None


def test_hidden_files_are_no_content_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nrrd", "._b.nii.gz", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path)] == ["a.nrrd", "b.nii.gz", "notes.txt"]
    assert by_stem(tmp_path, SCAN_SUFFIXES) == {"a": tmp_path / "a.nrrd", "b": tmp_path / "b.nii.gz"}
    assert by_stem(tmp_path / "absent", SCAN_SUFFIXES) == {}
    (tmp_path / "a.nii").touch()
    with pytest.raises(InputRefusedError, match=r"a\.nrrd and a\.nii: two files of one name"):
        by_stem(tmp_path, SCAN_SUFFIXES)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "not readable"), (b"\xff", "not readable"), (b"[1]", "a JSON list"), (None, "No such")],
)
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputRefusedError, match=words) as caught:
        read_object(path, "names by id")
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("expected names by id")
    path.write_text('{"1": "liver"}')
    assert read_object(path, "names by id") == {"1": "liver"}


def test_other_outputs_are_checked_by_their_own_ending(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "statistics.json", (".json",))
    with pytest.raises(InputRefusedError, match=r"\.json"):
        ensure_writable(tmp_path / "statistics.txt", (".json",))
    assert list(tmp_path.iterdir()) == []
