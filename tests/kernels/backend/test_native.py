"""Compiled C: kept for this user alone, loaded only as it was compiled, compiled again otherwise, nothing left."""

import ctypes
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lowtide.kernels.backend import native
from lowtide.storage import private_files

SOURCE = """#include <stdint.h>
void add(int64_t *number) { *number += %d; }
"""
ARGUMENTS = (ctypes.c_void_p,)

pytestmark = pytest.mark.skipif(native._compiler() is None, reason="there is no C compiler")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of compiled kernels, forgotten by this process; working folders lie below it, too."""
    assert native.state() != "plain torch"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(native, "kernels_folder", lambda: tmp_path / "kernels")
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    monkeypatch.setattr(private_files, "_warned", set())
    monkeypatch.setattr(native, "_failed", set())
    native._library.cache_clear()
    yield tmp_path / "kernels"
    assert [*work.iterdir()] == [], "something was left among the temporary files"
    native._library.cache_clear()


def added(number: int = 7) -> int | None:
    """Return the result of the compiled C; None where nothing could be compiled."""
    native._library.cache_clear()
    run = native.native(SOURCE % number, "add", ARGUMENTS)
    if run is None:
        return None
    value = ctypes.c_int64(0)
    run(ctypes.byref(value))
    return value.value


def kept(folder: Path) -> Path:
    (path,) = folder.glob("*.so")
    return path


def compilations(monkeypatch) -> list[str]:
    """Fills with the C that is compiled from now on."""
    sources: list[str] = []
    compiled = native._compiled
    monkeypatch.setattr(native, "_compiled", lambda *both: (sources.append(both[1]), compiled(*both))[1])
    return sources


def test_a_library_is_compiled_once_and_kept_for_this_user_alone(folder, monkeypatch):
    sources = compilations(monkeypatch)
    assert added() == added() == 7
    assert sources.count(SOURCE % 7) == 1
    assert {path.stat().st_mode & 0o777 for path in (folder, kept(folder))} == {0o700, 0o600}


def test_libraries_that_follow_each_other_are_not_taken_for_each_other(folder):
    assert [added(number) for number in (1, 2, 3, 1, 2, 3)] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:8000],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:5000] + bytes((content[5000] ^ 1,)) + content[5001:],
        lambda content: content[len(native._OPENING) + native._DIGEST_BYTES :],  # the bare library
        lambda content: b"\0" * len(content),
    ],
)
def test_a_damaged_library_is_never_loaded_and_is_replaced(folder, monkeypatch, damage):
    assert added() == 7
    whole = kept(folder).read_bytes()
    kept(folder).write_bytes(damage(whole))
    loaded: list[bytes] = []
    load = native._loaded
    monkeypatch.setattr(native, "_loaded", lambda library: (loaded.append(library), load(library))[1])
    sources = compilations(monkeypatch)
    assert added() == 7
    assert sources == [SOURCE % 7] and all(library in kept(folder).read_bytes() for library in loaded[-1:])
    assert kept(folder).read_bytes()[: len(native._OPENING)] == native._OPENING
    del sources[:]
    assert added() == 7 and sources == []


def test_a_library_under_the_name_of_another_is_compiled_again(folder):
    assert added(1) == 1
    first = kept(folder)
    content = first.read_bytes()
    first.unlink()
    assert added(2) == 2
    kept(folder).write_bytes(content)
    assert added(2) == 2


def test_a_library_cut_short_while_it_is_in_use_goes_on_working(folder):
    native._library.cache_clear()
    run = native.native(SOURCE % 7, "add", ARGUMENTS)
    kept(folder).write_bytes(b"")
    value = ctypes.c_int64(1)
    run(ctypes.byref(value))
    assert value.value == 8


@pytest.mark.skipif(not private_files._OWNED, reason="files have no owners here")
@pytest.mark.parametrize("place", ["kernels", "kernels above", "library"])
def test_what_others_could_have_changed_is_not_loaded_and_kernels_work_still(folder, monkeypatch, place):
    monkeypatch.setattr(native, "kernels_folder", lambda: folder / "kernels")
    assert added() == 7
    path = kept(folder / "kernels")
    content = path.read_bytes()
    {"kernels": path.parent, "kernels above": folder, "library": path}[place].chmod(0o777)
    sources = compilations(monkeypatch)
    read: list[bytes] = []
    unsealed = native._unsealed
    monkeypatch.setattr(native, "_unsealed", lambda *both: (read.append(both[0]), unsealed(*both))[1])
    if place == "library":
        assert added() == 7
        assert path.stat().st_mode & 0o777 == 0o600  # replaced
    else:
        with pytest.warns(RuntimeWarning, match="can be written by others"):
            assert added() == 7
    assert SOURCE % 7 in sources and content not in read


@pytest.mark.parametrize("where", [None, "a file is there"])
def test_where_nothing_can_be_kept_it_is_compiled_for_this_process_alone(folder, monkeypatch, where):
    folder.write_text("not a folder")
    monkeypatch.setattr(native, "kernels_folder", lambda: where and folder / "below")
    assert added() == 7
    assert folder.read_text() == "not a folder"


def test_c_that_does_not_compile_leaves_nothing_and_shows_in_the_state(folder):
    before = native.state()
    assert native.native("this is no C", "nothing", ()) is None
    assert native.state() != before and before == native.state()[: len(before)]
    assert not [*folder.glob("*.so")]


def test_a_compiler_that_does_not_work_is_none(folder, tmp_path, monkeypatch):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(native, "_compiler", lambda: str(broken))
    native._library.cache_clear()
    assert native.state() == "plain torch"
    assert added() is None


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")
def test_without_files_in_memory_a_file_of_this_process_serves(folder, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    assert added() == added() == 7


PROGRAM = """
import sys; sys.path[:0] = [sys.argv[1]]; import conftest
import ctypes
from pathlib import Path
from lowtide.kernels.backend import native
native.kernels_folder = lambda: Path(sys.argv[2])
value = ctypes.c_int64(0)
native.native(sys.argv[3], "add", (ctypes.c_void_p,))(ctypes.byref(value))
print(value.value, sys.argv[2] in Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else False)
"""


def test_processes_that_compile_at_once_keep_one_whole_library(folder):
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[2]), str(folder), SOURCE % 9]
    with ThreadPoolExecutor(3) as pool:
        runs = [*pool.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(3))]
    assert [run.stdout.split() for run in runs] == [["9", "False"]] * 3, runs[0].stderr
    assert added(9) == 9 and len([*folder.iterdir()]) == 2  # with the one that shows whether anything can be compiled
