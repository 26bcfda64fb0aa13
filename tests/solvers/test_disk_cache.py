"""Results of solving stay on disk: complete or not at all, per version of the solvers, within limits."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lowtide.solvers import disk_cache
from lowtide.solvers.disk_cache import DiskCache, entry_name
from lowtide.storage.cache_folder import cache_folder

CONTENT = {"text": "größer", "seconds": 0.1 + 0.2, "numbers": [1, None]}
ARRAYS = (np.arange(-5, 1000, dtype=np.int32), np.array([0.1, np.inf]), np.array([], dtype=np.int32))


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "entries")


def only_file(cache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


def test_an_entry_comes_back_as_it_was_written(cache):
    assert cache.read("one") is None
    cache.write("one", CONTENT, ARRAYS)
    entry = cache.read("one")
    assert entry is not None and entry.content == CONTENT
    for number, array in enumerate(ARRAYS):
        assert entry.array(number).dtype == array.dtype
        assert entry.array(number).tolist() == array.tolist()


def test_numbers_of_numpy_come_back_as_pythons(cache):
    cache.write("one", [np.int64(2**40), np.float32(0.5), np.float64(0.1)])
    assert cache.read("one").content == [2**40, 0.5, 0.1]


def test_a_second_entry_of_a_name_takes_the_place_of_the_first(cache):
    cache.write("one", 1, ARRAYS)
    cache.write("one", 2)
    assert cache.read("one").content == 2
    only_file(cache)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"something else",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: content[:60] + bytes((content[60] ^ 1,)) + content[61:],
        lambda content: content[:-3] + b"\0\0\0",
        lambda content: content[:14],
    ],
)
def test_a_damaged_entry_is_none_and_is_written_again(cache, damage):
    cache.write("one", CONTENT, ARRAYS)
    path = only_file(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read("one") is None
    cache.write("one", CONTENT, ARRAYS)
    assert cache.read("one").content == CONTENT


def test_no_cut_of_an_entry_is_taken_for_a_whole_one(cache):
    cache.write("one", [1], (np.arange(3, dtype=np.int32),))
    path = only_file(cache)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cache.read("one") is None


@pytest.mark.parametrize("place", ["folder", "entry"])
def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_raised(cache, place):
    if place == "folder":
        cache.folder.write_text("a file, not a folder")
    else:
        cache.write("one", 1)
        path = only_file(cache)
        path.unlink()
        path.mkdir()
    cache.write("one", CONTENT, ARRAYS)
    assert cache.read("one") is None
    if place == "entry":
        assert only_file(cache) == path  # no temporary file is left


def test_what_has_not_been_asked_for_longest_goes_first(tmp_path):
    array = np.random.default_rng(0).integers(2**31, size=1000, dtype=np.int32)  # 4,000 bytes, hardly compressed
    cache = DiskCache(tmp_path, most_bytes=13_000, tidied_every=1)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not an entry")
    for age, name in enumerate("abc"):
        cache.write(name, 0, (array,))
        os.utime(next(tmp_path.glob(f"{name}.*")), (1000 + age, 1000 + age))
    assert cache.read("a") is not None  # read just now
    cache.write("d", 0, (array,))
    assert [name for name in "abcd" if cache.read(name)] == ["a", "c", "d"]
    assert foreign.exists()


def test_the_number_of_entries_is_limited(tmp_path):
    cache = DiskCache(tmp_path, most_entries=3, tidied_every=1)
    for number in range(10):
        cache.write(str(number), number)
    assert len([*tmp_path.iterdir()]) == 3
    assert cache.read("9").content == 9


def test_entries_written_and_read_at_once_are_whole(cache):
    def write_and_read(number):
        cache.write("shared", number, (np.full(50_000, number, dtype=np.int32),))
        entry = cache.read("shared")
        return entry is not None and set(entry.array(0).tolist()) == {entry.content}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(200)))
    only_file(cache)


def test_entries_lie_in_the_users_cache_folder_as_the_environment_says(tmp_path, monkeypatch):
    cache = DiskCache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.write("one", 1)
    assert [path.parent for path in tmp_path.rglob("*.entry")] == [tmp_path / "lowtide" / "solved"]
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "lowtide"


def test_a_name_depends_on_every_text_and_on_where_one_ends():
    cases = [("a", "b"), ("b", "a"), ("ab",), ("ab", ""), ("", "ab"), ("a", "b", "")]
    assert len({entry_name("candidates", *texts) for texts in cases} | {entry_name("block_schedules", "a", "b")}) == 7


def test_another_version_of_the_solvers_has_other_names(tmp_path, monkeypatch):
    before = disk_cache._version()
    assert before == disk_cache._version()
    monkeypatch.setattr(disk_cache, "__file__", str(tmp_path / "disk_cache.py"))
    (tmp_path / "portfolio.py").write_text("one = 1")
    first = disk_cache._version()
    (tmp_path / "portfolio.py").write_text("one = 2")
    assert len({before, first, disk_cache._version()}) == 3
    (tmp_path / "portfolio.py").unlink()
    assert disk_cache._version() != disk_cache._version()  # without sources nothing is read from another process


def test_names_are_the_same_in_every_process():
    program = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent.parent), str(Path(__file__).parent)]};"
        "import conftest; from made_problems import llama;"
        "from lowtide.solvers.candidates.candidate_cache import problem_digest;"
        "from lowtide.solvers.disk_cache import entry_name; print(entry_name('candidates', problem_digest(llama(2))))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1
