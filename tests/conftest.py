"""Lets the tests run from a checkout in a folder of any name, and find the helpers next to this file."""

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MANY_IMPORTS = 20  # modules
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the network
CACHE = tempfile.TemporaryDirectory(prefix="lowtide-tests-")  # removed when the tests end
os.environ["XDG_CACHE_HOME"] = CACHE.name  # no test reads or writes the user's cache
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers share the cores: more threads would wait for each other
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))

if importlib.util.find_spec("lowtide") is None:
    start, inside = ROOT / "__init__.py", [str(ROOT)]
    spec = importlib.util.spec_from_file_location("lowtide", start, submodule_search_locations=inside)
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["lowtide"] = package
    spec.loader.exec_module(package)


if "benchmarks" not in sys.modules:  # importable whether or not the root is on the path
    sys.modules["benchmarks"] = types.ModuleType("benchmarks")
    sys.modules["benchmarks"].__path__ = [str(ROOT / "benchmarks")]


class Helpers(importlib.abc.MetaPathFinder):
    """Finds `small_models` and the other helpers in this folder.

    The folder itself is not put on the path: its `kernels` would then hide the package of that name, which
    transformers looks for.
    """

    def find_spec(self, fullname, path, target=None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of the module `fullname` if it is a file next to this one."""
        file = Path(__file__).with_name(f"{fullname}.py")
        if path is not None or not file.is_file():
            return None
        return importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.append(Helpers())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites golden files."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `tests/golden/NAME.txt`, given as name and text."""
    from golden_files import compare

    return partial(compare, update=request.config.getoption("--update-golden"))


_set_aside: tuple[str, int] = "", 0


def pytest_runtest_logstart(location):
    """Leave what imports and the tests of earlier files have made out of further garbage collections.

    Measuring a peak collects garbage and looks for tensors, which would search a million objects of torch, transformers
    and the tests each time.
    """
    global _set_aside
    file, imported = _set_aside
    if location[0] != file or len(sys.modules) > imported + MANY_IMPORTS:
        gc.collect()
        gc.freeze()
        _set_aside = location[0], len(sys.modules)
