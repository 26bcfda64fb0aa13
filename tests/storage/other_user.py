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
    """Run one step of a small model that needs all caches, and eager. Raises AssertionError if gradients differ."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
    x = torch.randn(4, 8)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), costs="flops")
    gradients = []
    for module in (model, small):
        torch.manual_seed(1)
        module(x).sum().backward()
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients)) and len(gradients[0]) == 4
    return gradients[0]


def forget() -> None:
    """Make this process compile, load and read again."""
    native._library.cache_clear()
    private_files._warned.clear()


def as_user(user: int, run: Callable[[], None]) -> None:
    """Call `run` in a forked process of another user. Raises AssertionError if it fails."""
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
    """Replace a file by something of this kind."""
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
    """Return the files of costs, entries and compiled kernels, sorted."""
    return sorted(path for path in cache.rglob("*") if path.suffix in (".json", ".entry", ".so", ".probe"))


def open_cache(folder: Path) -> None:
    """Check that nothing is used or changed in a cache to which everybody may write."""
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
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train()
        assert any("nothing is kept in" in str(warning.message) for warning in caught), [
            str(warning.message) for warning in caught
        ]
        assert str(cache) not in Path("/proc/self/maps").read_text()

    as_user(VICTIM, watched)
    assert {path: path.read_bytes() for path in files_in(cache)} == contents


def planted(folder: Path, round_number: int) -> None:
    """Check that planted files are replaced or left once the victim's folders are closed to the attacker again."""
    cache = folder / f"planted {round_number}"
    cache.mkdir()
    os.chown(cache, VICTIM, VICTIM)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    as_user(VICTIM, train)
    folders = [path for path in (cache, *cache.rglob("*")) if path.is_dir()]
    modes = {path: path.stat().st_mode for path in folders}
    paths = files_in(cache)
    for path in folders:
        path.chmod(0o777)
    kinds = [KINDS[(number + round_number) % len(KINDS)] for number in range(len(paths))]
    as_user(ATTACKER, lambda: [*map(plant, kinds, paths)] and None)
    for path, mode in modes.items():
        path.chmod(mode)
    as_user(VICTIM, train)
    for kind, path in zip(kinds, paths, strict=True):
        # a folder stays in the way, and nothing is kept under that name
        assert path.lstat().st_uid == (ATTACKER if kind == "folder" else VICTIM), (kind, path)


def sticky(folder: Path) -> None:
    """Check that in a folder like /tmp neither the attacker's `lowtide` nor a link that he made is used."""
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
    """Run every scenario in the folder given as argument; end with status 0 if all went well."""
    folder = Path(sys.argv[1])
    os.environ["XDG_CACHE_HOME"] = str(folder / "first")
    train()  # imports all that another user may not be able to read
    folder.chmod(0o755)
    open_cache(folder)
    for round_number in range(2):
        planted(folder, round_number)
    sticky(folder)
    print("every scenario went well")


if __name__ == "__main__":
    main()
