"""Files of one user's caches: nobody else can change them, and files that others could have made are not read."""

import os
import stat
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lowtide.storage import private_files
from lowtide.storage.private_files import UnsafeError, read_private, remove_oldest, working_folder, write_private

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files have no owners and modes here")
_MOST = 1000


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Make a file in two folders that are made for it."""
    monkeypatch.setattr(private_files, "_warned", set())
    path = tmp_path / "lowtide" / "kernels" / "one.so"
    write_private(path, b"content", lasting=True)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_folders_and_files_are_made_for_this_user_alone(file):
    before = os.umask(0)
    try:
        write_private(file.with_name("two.so"), b"more")
        write_private(file.parent / "below" / "three.so", b"more")
    finally:
        os.umask(before)
    assert {mode(path) for path in (file.parent, file.parent.parent, file.parent / "below")} == {0o700}
    assert {mode(path) for path in file.parent.rglob("*.so")} == {0o600}
    assert read_private(file, _MOST) == b"content"


@pytest.mark.parametrize("added", [stat.S_IWOTH, stat.S_IWGRP])
@pytest.mark.parametrize("what", ["file", "folder", "folder above"])
def test_what_others_could_have_changed_is_not_read(file, what, added, monkeypatch):
    monkeypatch.setattr(private_files, "_alone_in", lambda group: False)
    changed = {"file": file, "folder": file.parent, "folder above": file.parent.parent}[what]
    changed.chmod(mode(changed) | added)
    with pytest.warns(RuntimeWarning, match="can be written by others") if what != "file" else _quiet():
        with pytest.raises(UnsafeError):
            read_private(file, _MOST)
        if what == "file":
            write_private(file, b"new")  # which replaces it
            assert read_private(file, _MOST) == b"new" and mode(file) == 0o600
        else:
            with pytest.raises(UnsafeError):
                write_private(file.with_name("two.so"), b"new")


class _quiet:
    """A context in which no warning is expected."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_a_folder_in_which_everybody_may_put_files_but_remove_only_their_own_can_lie_above(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    write_private(shared / "lowtide" / "one", b"1")
    assert read_private(shared / "lowtide" / "one", _MOST) == b"1"
    with pytest.warns(RuntimeWarning), pytest.raises(UnsafeError):
        write_private(shared / "one", b"1")


def test_a_group_of_ones_own_may_write(file, monkeypatch):
    monkeypatch.setattr(private_files, "_alone_in", lambda group: True)
    file.parent.chmod(0o770)
    assert read_private(file, _MOST) == b"content"


def test_a_path_that_is_not_a_file_is_refused_at_once(file):
    names = ("pipe", "link", "folder", "nothing")
    pipe, link, folder, missing = (file.with_name(name) for name in names)
    os.mkfifo(pipe)
    link.symlink_to(file)
    folder.mkdir()
    started = time.perf_counter()
    for path in (pipe, link, folder, missing):
        with pytest.raises(OSError, match=r"regular file|symbolic link|No such file|directory"):
            read_private(path, _MOST)
    assert time.perf_counter() - started < 5
    for path in (pipe, link):
        write_private(path, b"a file")
        assert read_private(path, _MOST) == b"a file"
    assert read_private(file, _MOST) == b"content"  # the link's target is unchanged
    with pytest.raises(OSError, match="directory"):
        write_private(folder, b"a file")
    assert sorted(path.name for path in file.parent.iterdir()) == ["folder", "link", "one.so", "pipe"]


def test_no_more_is_read_than_is_allowed(file):
    assert read_private(file, 7) == b"content"
    with pytest.raises(OSError, match="more than 6 bytes"):
        read_private(file, 6)
    with file.open("r+b") as grown:
        grown.truncate(2**40)  # takes no room on the disk
    with pytest.raises(OSError, match="more than"):
        read_private(file, _MOST)


def test_a_link_of_ones_own_on_the_way_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "lowtide").symlink_to("../far")
    write_private(tmp_path / "near" / "lowtide" / "one", b"1")
    assert (tmp_path / "far" / "one").read_bytes() == b"1"
    (tmp_path / "near" / "round").symlink_to("round")
    with pytest.warns(RuntimeWarning), pytest.raises(UnsafeError):
        read_private(tmp_path / "near" / "round" / "one", _MOST)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(file, monkeypatch):
    def broken(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(private_files.os, "replace", broken)
    with pytest.raises(OSError, match="no space"):
        write_private(file, b"new")
    assert read_private(file, _MOST) == b"content"
    assert [*file.parent.iterdir()] == [file]


def test_writers_at_once_leave_one_whole_file(file):
    contents = [bytes([number]) * 100_000 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        seen = pool.map(lambda content: (write_private(file, content), read_private(file, 10**6))[1], contents)
        assert all(len(set(content)) == 1 and len(content) == 100_000 for content in seen)
    assert [*file.parent.iterdir()] == [file]


def test_the_oldest_go_and_other_files_stay(file):
    (file.parent / "notes.txt").write_text("mine")
    for age in range(5):
        path = file.with_name(f"{age}.so")
        write_private(path, b"x" * 10)
        os.utime(path, (1000 - age, 1000 - age))
    remove_oldest(file.parent, ".so", most_bytes=1000, most_files=3)
    assert sorted(path.name for path in file.parent.iterdir()) == ["0.so", "1.so", "notes.txt", "one.so"]
    remove_oldest(file.parent, ".so", most_bytes=7, most_files=3)
    assert sorted(path.name for path in file.parent.iterdir()) == ["notes.txt", "one.so"]


def test_a_working_folder_is_gone_afterwards_whatever_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="stop"), working_folder() as folder:
        assert mode(folder) == 0o700 and folder.parent == tmp_path
        (folder / "file").write_text("made meanwhile")
        raise ValueError("stop")
    assert [*tmp_path.iterdir()] == []


def test_a_working_folder_is_not_made_where_another_user_could_take_its_place(tmp_path, monkeypatch):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    with working_folder(own) as folder:
        assert folder.parent == own
    with pytest.raises(UnsafeError), working_folder():
        pass
    assert [*shared.iterdir()] == []
