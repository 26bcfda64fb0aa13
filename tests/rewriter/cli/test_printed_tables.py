"""The tables of the command line, as text: for a device that is not here, so that no number is measured."""

import re

import pytest
import torch
from lowtide.rewriter.cli.main import app
from typer.testing import CliRunner

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that is here is measured")

SETTINGS = ("n_layer=2", "n_embd=32", "n_head=2", "vocab_size=200")
TINY = ["gpt2", "--batch", "2", "--seq", "16", *(word for setting in SETTINGS for word in ("--set", setting))]
FLOPS = [*TINY, "--costs", "flops"]
ELSEWHERE = [*FLOPS, "--device", "h200-141gb"]


def printed(*words: str) -> str:
    """Return what a call prints, without the seconds that it took to solve."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return re.sub(r"in \d+\.\d\d s$", "in … s", result.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("profile", ["profile", *ELSEWHERE]),
        ("plan", ["plan", *ELSEWHERE, "--budget", "97%", "--solver", "greedy"]),
        ("sweep", ["sweep", *ELSEWHERE, "--count", "3"]),
    ],
)
def test_a_table(golden, name, words):
    golden(f"command_line/{name}", printed(*words))


def test_the_table_of_codes_with_three_digits(golden):
    golden("command_line/codes", re.sub(r"(\d\.0*[1-9]\d\d)\d+", r"\1…", printed("codes", "gelu", "--bits", "2")))


def test_the_table_of_a_saved_plan(golden, tmp_path):
    path = tmp_path / "plan.json"
    printed("plan", *ELSEWHERE, "--budget", "97%", "--solver", "greedy", "--out", str(path))
    golden("command_line/plan", printed("inspect", str(path)))


def test_the_table_of_a_verification_without_its_numbers(golden):
    text = printed("verify", *FLOPS, "--budget", "97%", "--solver", "greedy", "--steps", "1")
    golden("command_line/verify", re.sub(r"\d[\d,.]*(?= (GiB|MiB|KiB|bytes))|\d[\d.]*%", "…", text))
