"""Lets the tests of this folder import the problems made beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
