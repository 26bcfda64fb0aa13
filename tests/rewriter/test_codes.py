"""Codes come from the command line and from Python, for known activations and for functions of one's own."""

import json

import lowtide
import pytest
import torch
from lowtide.rewriter.cli.main import app
from typer.testing import CliRunner

PNG = b"\x89PNG\r\n\x1a\n"


def run(*words: str, status: int = 0):
    """The result of one call."""
    result = CliRunner().invoke(app, ["codes", *words], env={"COLUMNS": "100"})
    assert result.exit_code == status, result.output
    return result


def test_codes_as_json():
    payload = json.loads(run("gelu", "--bits", "4", "--weight", "uniform:-10,10", "--json").stdout)
    assert payload["error"] == pytest.approx(3.139633e-3, rel=1e-5)
    assert payload["value_error"] == pytest.approx(2.11707e-3, rel=1e-4)
    assert (len(payload["borders"]), len(payload["levels"]), len(payload["value_levels"])) == (15, 16, 16)
    assert (payload["activation"], payload["bits"], payload["weight"]) == ("gelu", 4, "uniform:-10,10")
    assert len(payload["unbiased_levels"]) == 16 and payload["unbiased_variance"] > payload["value_error"]


def test_codes_as_text_fit_a_hundred_columns():
    text = run("hardswish", "--bits", "6").stdout
    assert "by intervals" in text and "rows 16 to 47 are left out" in text
    assert max(map(len, text.splitlines())) <= 100


def test_codes_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "codes.png"
    assert f"drawn in {path}" in run("silu", "--bits", "2", "--plot", str(path)).stdout.replace("\n", "")
    assert path.read_bytes().startswith(PNG)


def test_a_function_of_ones_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "bent_for_codes.py").write_text("def bent(x):\n    return (x.relu() ** 2).clamp(max=4)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    payload = json.loads(run("bent_for_codes:bent", "--bits", "1", "--weight", "uniform:-1,2", "--json").stdout)
    assert payload["activation"] == "bent_for_codes:bent"
    # f' is 0, then 2 x: at the border c, 2 c is the mean of c^2 / (1 + c) and 2 + c
    assert payload["borders"] == pytest.approx([(17**0.5 - 1) / 4], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gelu", "--bits", "9"], "bits 9 is outside of 1 to 8"),
        (["gelu", "--bits", "0"], "bits 0 is outside of 1 to 8"),
        (["gellu", "--bits", "2"], "no activation is called 'gellu': did you mean gelu?"),
        (["no_such_module:f", "--bits", "2"], "'no_such_module:f' cannot be imported: ModuleNotFoundError"),
        (["gelu", "--bits", "2", "--weight", "normal:0,0"], "STD must be above 0"),
        (["gelu", "--bits", "2", "--weight", "even"], "cannot be read: write uniform:LOW,HIGH"),
        (["gelu", "--bits", "2", "--plot", "codes.xyz"], "is not a picture's name"),
    ],
)
def test_errors_are_a_line_on_standard_error(words, message):
    result = run(*words, status=2)
    assert result.stdout == "" and result.stderr.startswith("error: ") and message in result.stderr


def test_codes_from_python_take_samples_too():
    samples = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    result = lowtide.codes(torch.tanh, 2, samples)
    assert result.value_error <= result.error and len(result.levels) == 4
    assert "in 2 bits under histogram" in str(result)
    assert isinstance(result, lowtide.Codes)
