"""Run by root as a process of its own: one user trains in a cache folder where another one plants and damages files."""

from __future__ import annotations

import copy
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import conftest  # noqa: F401 - finds lowtide
import lowtide
import torch
from lowtide.kernels.backend import native
from lowtide.storage import private_files

VICTIM, ATTACKER = 54321, 54322
KINDS = ("file", "huge file", "pipe", "link", "folder")
torch.set_num_threads(1)  # processes are forked below


def train() -> list[torch.Tensor]:
    """One step of a small model that needs all caches, beside eager. Raises AssertionError where they differ."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    x = torch.randn(4, 8)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), costs="flops")
    found = []
    for one in (model, small):
        torch.manual_seed(1)
        one(x).sum().backward()
        found.append([p.grad.clone() for p in one.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found)) and len(found[0]) == 4
    return found[0]


def forget() -> None:
    """Has this process compile, load and read anew."""
    native._library.cache_clear()
    private_files._warned.clear()


def as_user(user: int, run: Callable[[], None]) -> None:
    """Runs something in a forked process of another user. Raises AssertionError where it fails."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            forget()
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the process of user {user} failed"


def plant(kind: str, path: Path) -> None:
    """Puts something in the place of a file."""
    if path.is_symlink() or path.exists():
        path.unlink()
    if kind == "file":
        path.write_bytes(b"planted" * 100)
    elif kind == "huge file":
        path.touch()
        os.truncate(path, 2**40)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()


def files_in(cache: Path) -> list[Path]:
    """Costs, entries and compiled kernels, each once."""
    return sorted(path for path in cache.rglob("*") if path.suffix in (".json", ".entry", ".so", ".probe"))


def open_cache(folder: Path) -> None:
    """Everybody may write to a cache: nothing in it is used or changed."""
    cache = folder / "open"
    cache.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(cache)
    as_user(os.getuid(), train)
    names = [path.relative_to(cache) for path in files_in(cache)]
    assert {name.suffix for name in names} == {".json", ".entry", ".so", ".probe"}, names
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o777)
    contents = {path: path.read_bytes() for path in files_in(cache)}
    for path in contents:
        os.chown(path, ATTACKER, ATTACKER)

    def watched() -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train()
        assert any("nothing is kept in" in str(one.message) for one in told), [str(one.message) for one in told]
        assert str(cache) not in Path("/proc/self/maps").read_text()

    as_user(VICTIM, watched)
    assert {path: path.read_bytes() for path in files_in(cache)} == contents


def planted(folder: Path, turn: int) -> None:
    """The attacker could once write to the victim's folders, which are closed again: each file is replaced or left."""
    cache = folder / f"planted {turn}"
    cache.mkdir()
    os.chown(cache, VICTIM, VICTIM)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    as_user(VICTIM, train)
    folders = [path for path in (cache, *cache.rglob("*")) if path.is_dir()]
    modes = {path: path.stat().st_mode for path in folders}
    paths = files_in(cache)
    for path in folders:
        path.chmod(0o777)
    kinds = [KINDS[(number + turn) % len(KINDS)] for number in range(len(paths))]
    as_user(ATTACKER, lambda: [*map(plant, kinds, paths)] and None)
    for path, mode in modes.items():
        path.chmod(mode)
    as_user(VICTIM, train)
    for kind, path in zip(kinds, paths, strict=True):
        # a folder stays in the way, and nothing is kept under that name
        assert path.lstat().st_uid == (ATTACKER if kind == "folder" else VICTIM), (kind, path)


def sticky(folder: Path) -> None:
    """In a folder like /tmp the attacker was there first: his `lowtide` is not used; nor is a link that he made."""
    for number, make in enumerate((Path.mkdir, lambda path: path.symlink_to(folder))):
        cache = folder / f"sticky {number}"
        cache.mkdir()
        cache.chmod(0o1777)
        os.environ["XDG_CACHE_HOME"] = str(cache)

        def first(make: Callable[[Path], object] = make, cache: Path = cache) -> None:
            make(cache / "lowtide")

        as_user(ATTACKER, first)
        before = sorted(cache.rglob("*"))
        as_user(VICTIM, train)
        assert sorted(cache.rglob("*")) == before


def main() -> None:
    """Every scenario, in a folder that is given; ends with status 0 if all went well."""
    folder = Path(sys.argv[1])
    os.environ["XDG_CACHE_HOME"] = str(folder / "first")
    train()  # imports all that another user may not be able to read
    folder.chmod(0o755)
    open_cache(folder)
    for turn in range(2):
        planted(folder, turn)
    sticky(folder)
    print("every scenario went well")


if __name__ == "__main__":
    main()
