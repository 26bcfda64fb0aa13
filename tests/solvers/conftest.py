"""Let the tests of this folder import the helper modules next to them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
