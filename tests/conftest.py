"""Lets the tests run from a bare checkout: whatever the folder is called, it is the package `lowtide`."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("lowtide") is None:
    spec = importlib.util.spec_from_file_location("lowtide", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["lowtide"] = package
    spec.loader.exec_module(package)
