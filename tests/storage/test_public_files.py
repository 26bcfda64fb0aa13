"""Files that anyone may read: written whole, with the usual modes, and read within bounds."""

import os
import stat
import threading
from pathlib import Path

import pytest
from lowtide.storage import public_files
from lowtide.storage.public_files import read_bounded, write_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="files have no modes here")
def test_a_file_has_the_mode_that_new_files_have_or_that_it_had(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "plan.json", b"1")
        assert mode(tmp_path / "plan.json") == 0o640
        (tmp_path / "plan.json").chmod(0o604)
        write_whole(tmp_path / "plan.json", b"2")
        assert mode(tmp_path / "plan.json") == 0o604
    finally:
        os.umask(before)
    assert (tmp_path / "plan.json").read_bytes() == b"2"


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_what_a_link_leads_to_is_written_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "target.json").write_text("old")
    (tmp_path / "link.json").symlink_to("target.json")
    write_whole(tmp_path / "link.json", b"new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "target.json").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", b"through")
    reader.join(10)
    assert read == [b"through"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_whole(path, b"old")

    def broken(*_args):
        raise OSError("no space left")

    monkeypatch.setattr(public_files.os, "fsync", broken)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_only_files_of_bounded_size_are_read(tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(OSError):
        read_bounded(tmp_path, 5)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_pipe_or_a_device_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_bounded(path, 5)
