"""A cache folder shared with another user who plants and damages files: none is used, and training goes on."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be two users")
def test_nothing_that_another_user_planted_is_used():
    folder = tempfile.mkdtemp(prefix="lowtide-users-", dir="/tmp")  # which other users can reach
    try:
        command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("other_user.py")), folder]
        run = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ, "TMPDIR": "/tmp"})
        assert run.returncode == 0 and "every scenario went well" in run.stdout, run.stderr[-3000:]
    finally:
        shutil.rmtree(folder)
