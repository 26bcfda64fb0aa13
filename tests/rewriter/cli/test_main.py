"""The command line prints what was asked for, as tables or as JSON alone, and says in a line what cannot be done."""

import json
import subprocess
import sys
from pathlib import Path

import lowtide
import pytest
from encoded_plans import OPTIONS as ENCODED
from encoded_plans import with_all_encoded
from lowtide.rewriter.cli.main import app
from lowtide.rewriter.cli.request import Request
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.plan.plan_file import load_plan, save_plan
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[3]
SIZES = {"n_layer": "2", "n_embd": "32", "n_head": "2", "vocab_size": "200"}
TINY = ["gpt2", "--batch", "2", "--seq", "16", *(word for item in SIZES.items() for word in ("--set", "=".join(item)))]
APPROXIMATE = [*TINY, "--fidelity", "approximate"]


def run(*words: str, status: int = 0):
    """The result of one call; errors of ours leave no traceback."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def json_of(*words: str, status: int = 0):
    """Return the output of a call with `--json`: JSON and nothing else on standard output."""
    return json.loads(run(*words, "--json", status=status).stdout)


def error_of(*words: str) -> str:
    """The message of a call that must fail: on standard error, with status 2, and nothing on standard output."""
    result = run(*words, status=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory):
    """A plan of the tiny model, saved by the command line."""
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    run("plan", *TINY, "--budget", "97%", "--costs", "flops", "--out", str(path))
    return path


def test_help_and_version_import_no_torch():
    program = (
        "import sys; from lowtide.rewriter.cli.main import app; from typer.testing import CliRunner\n"
        "results = [CliRunner().invoke(app, [*c, '--help']) for c in ([], ['profile'], ['plan'], ['verify'])]\n"
        "results.append(CliRunner().invoke(app, ['--version']))\n"
        "print([r.exit_code for r in results], {'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True)
    if "No module named 'lowtide'" in done.stderr:
        pytest.skip("lowtide is not installed")
    assert done.stdout.strip() == "[0, 0, 0, 0, 0] set()", done.stderr


def test_what_libraries_print_reaches_neither_stream():
    """Runs a separate process, since some libraries print below Python's streams, and once per process.

    The layer is planned with integer programs.
    """
    sizes = ["--set", "n_layer=1", "--set", "vocab_size=50", "--seq", "32"]
    words = ["plan", *TINY, *sizes, "--budget", "85%", "--costs", "flops", "--json"]
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import conftest\n"
        f"from lowtide.rewriter.cli.main import app; app({words!r}, standalone_mode=False)\n"
        "assert 'highspy' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["peak_bytes"] > 0


def test_the_version_is_the_packages():
    assert run("--version").stdout == f"lowtide {lowtide.__version__}\n"


def test_profile_shows_where_the_bytes_are():
    text = run("profile", *TINY, "--costs", "flops").stdout
    assert "transformer.h.0-1 (×2)" in text and "kept for backward" in text and "_log_softmax" in text
    assert max(map(len, text.splitlines())) <= 100


def test_profile_as_json_adds_up():
    profile = json_of("profile", *TINY, "--costs", "flops")
    assert sum(row["kept_bytes"] for row in profile["modules"]) == profile["kept_bytes"]
    parts = [size for name, size in profile["peak"].items() if name.endswith("_bytes")]
    assert sum(parts) == profile["peak_bytes"]
    assert profile["request"]["settings"] == SIZES


def test_depth_distinguishes_more_modules():
    deep = json_of("profile", *TINY, "--costs", "flops", "--depth", "4")["modules"]
    assert "transformer.h.1.mlp" in [row["module"] for row in deep]


def test_plan_keeps_the_budget(plan_path):
    plan = json_of("plan", *TINY, "--budget", "97%", "--costs", "flops")
    assert plan["peak_bytes"] <= plan["budget_bytes"] == int(0.97 * plan["baseline_peak_bytes"])
    assert sum(module["kernels_again"] for module in plan["modules"]) > 0
    assert plan["peak_bytes"] == load_plan(plan_path).peak_bytes


def test_plan_as_text_fits_a_hundred_columns():
    text = run("plan", *TINY, "--budget", "97%", "--costs", "flops", "--outputs", "loss").stdout
    assert "recomputed" in text and "no schedule takes less than" in text
    assert max(map(len, text.splitlines())) <= 100


def test_codes_to_choose_among_are_passed_and_kept_with_the_plan(tmp_path):
    path = tmp_path / "plan.json"
    words = [*APPROXIMATE, "--seq", "64", "--budget", "100%", "--costs", "flops", "--error-budget", "0.5"]
    request = json_of("plan", *words, "--codecs", "dct", "--codecs", "uniform", "--out", str(path))["request"]
    assert request["codecs"] == ["dct", "uniform"] and request["error_budget"] == 0.5
    names = {encoding.name for value in load_plan(path).problem.values for encoding in value.encodings}
    assert names and all(name.endswith(("sketch, dct", "rows, uniform")) for name in names)
    assert "def backward_" in run("inspect", str(path), "--code").stdout


def test_plan_for_a_device_that_is_not_here_allocates_nothing():
    plan = json_of("plan", *TINY, "--budget", "100%", "--device", "h200-141gb", "--dtype", "bfloat16")
    assert plan["costs"] == "roofline" and plan["peak_bytes"] % 512 == 0


def test_sweep_goes_from_everything_kept_to_the_smallest_peak():
    plans = json_of("sweep", *TINY, "--costs", "roofline", "--count", "4")["plans"]
    peaks = [plan["peak_bytes"] for plan in plans]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] == plans[0]["baseline_peak_bytes"]
    assert 2 <= len(plans) <= 4
    text = run("sweep", *TINY, "--costs", "roofline", "--count", "4").stdout
    assert "proven at least" in text and max(map(len, text.splitlines())) <= 100


def test_verify_says_that_bits_and_peak_are_right():
    text = run("verify", *TINY, "--budget", "97%", "--steps", "1").stdout
    assert "GPT2LMHeadModel: verified" in text and max(map(len, text.splitlines())) <= 100


def test_verify_as_json_with_a_padded_batch():
    report = json_of("verify", *TINY, "--budget", "97%", "--steps", "2", "--pairs", "1", "--padded")
    assert report["ok"] and report["measured_peak_bytes"] == report["plan"]["peak_bytes"]
    assert report["time_ratio"] > 0 and report["request"]["padded"]


def test_verify_ends_with_1_where_the_report_is_not_ok(monkeypatch):
    from lowtide.rewriter.verify.report import Report

    monkeypatch.setattr(Report, "ok", False)
    assert json_of("verify", *TINY, "--budget", "100%", "--steps", "1", "--costs", "flops", status=1)["ok"] is False


def test_inspect_shows_what_plan_saved(plan_path):
    text = run("inspect", str(plan_path)).stdout
    assert text.startswith("gpt2 n_layer=2") and "extra time" in text
    inspected = json_of("inspect", str(plan_path))
    assert inspected["peak_bytes"] == load_plan(plan_path).peak_bytes
    assert inspected["request"]["sequence"] == 16


def test_inspect_prints_the_code_of_a_saved_plan(plan_path):
    code = run("inspect", str(plan_path), "--code").stdout
    compile(code, "plan", "exec")
    assert "def forward_1(" in code and code.startswith("# One training step of GPT2LMHeadModel")
    assert json_of("inspect", str(plan_path), "--code")["code"].strip() == code.strip()


def test_inspect_prints_the_code_of_an_approximate_plan_as_it_is_run(tmp_path):
    sizes = {**SIZES, "n_layer": "1"}
    request = Request.of("gpt2", {**ENCODED, "outputs": ["loss"]}, settings=sizes, batch=8, sequence=32)
    model, batch = build_model("gpt2", overrides=sizes), sample_batch(build_model("gpt2", overrides=sizes), 8, 32)
    plan = with_all_encoded(model, batch)
    save_plan(plan, tmp_path / "plan.json", made_by=request.to_dict())
    code = run("inspect", str(tmp_path / "plan.json"), "--code").stdout
    small = lowtide.rewrite(model, plan.peak_bytes, (), batch, plan=plan, **ENCODED, outputs=["loss"])
    assert "lowtide.encode_groups" in code and "seed=seed + " in code
    assert code.strip() == small.code.strip()


def test_the_code_of_a_plan_for_another_device_is_made_on_meta(tmp_path):
    path = tmp_path / "plan.json"
    run("plan", *TINY, "--budget", "100%", "--device", "h200-141gb", "--out", str(path))
    assert "def backward_" in run("inspect", str(path), "--code").stdout


def test_a_plan_saved_from_python_shows_its_numbers_but_no_code(tmp_path):
    path = tmp_path / "plan.json"
    model = build_model("gpt2", overrides=SIZES)
    save_plan(lowtide.plan(model, "100%", (), sample_batch(model, 2, 16), costs="flops"), path)
    assert run("inspect", str(path)).stdout.startswith("GPT2LMHeadModel")
    assert "print(small.code)" in error_of("inspect", str(path), "--code")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "gpt3", "--budget", "1GiB"], "no model is called 'gpt3': did you mean"),
        (["plan", *TINY, "--budget", "lots"], "budget 'lots' cannot be read"),
        (["plan", *TINY, "--budget", "0"], "is not above 0 bytes"),
        (["plan", *TINY, "--budget", "2 parsecs"], "unknown unit 'parsecs'"),
        (["plan", *TINY, "--budget", "1KiB", "--costs", "flops"], "no schedule of GPT2LMHeadModel fits 1.00 KiB"),
        (["verify", *TINY, "--budget", "1KiB", "--costs", "flops"], "no schedule of GPT2LMHeadModel fits 1.00 KiB"),
        (["profile", *TINY, "--set", "n_layers=3"], "has no n_layers; did you mean n_layer"),
        (["profile", *TINY, "--set", "n_layer"], "is not NAME=VALUE"),
        (["profile", *TINY, "--dtype", "int3"], "dtype 'int3' is not one of"),
        (["profile", *TINY, "--device", "abacus"], "no device preset is called 'abacus'"),
        (["profile", *TINY, "--batch", "0"], "--batch 0 is below 1"),
        (["plan", *TINY, "--budget", "90%", "--solver", "oracle"], "there is no solver 'oracle'"),
        (["plan", *TINY, "--budget", "90%", "--out", "/no/such/folder/plan.json"], "cannot be written"),
        (["plan", *TINY, "--budget", "90%", "--outputs", "nothing"], "nothing"),
        (["plan", *TINY, "--budget", "90%", "--device", "h200-141gb", "--costs", "measured"], "pass --costs roofline"),
        (["verify", *TINY, "--budget", "90%", "--device", "h200-141gb"], "can only be planned for"),
        (["plan", "llama-70b", "--budget", "60%"], "plan without allocating them by --device"),
        (["plan", *APPROXIMATE, "--budget", "90%", "--codecs", "sparse"], "no approximate code is called 'sparse'"),
        (["verify", *APPROXIMATE, "--budget", "90%", "--codecs", "sparse"], "choose among groups, spread, derivatives"),
        (["plan", *TINY, "--budget", "90%", "--error-budget", "0.1"], "error_budget=0.1 is for fidelity"),
        (
            ["sweep", *TINY, "--codecs", "rows", "--fidelity", "rounding"],
            "and fidelity is 'rounding': leave codecs out",
        ),
        (["verify", *TINY, "--budget", "90%", "--codecs", "rows"], "and fidelity is 'bitwise'"),
        (["sweep", *TINY, "--plot", "frontier.xyz"], "is not a picture's name"),
        (["inspect", "no-such-plan.json"], "cannot be read as a plan"),
    ],
)
def test_errors_are_a_line_on_standard_error(words, message):
    assert message in error_of(*words)


def test_an_earlier_name_of_a_solver_is_noted_once():
    result = run("plan", *TINY, "--budget", "97%", "--costs", "flops", "--solver", "dp")
    assert result.stderr.count("note: the solver 'dp' is now called 'rotor'") == 1
    assert "rotor in" in result.stdout


def test_errors_leave_standard_output_empty_with_json_too():
    assert "unknown unit" in error_of("plan", *TINY, "--budget", "2 parsecs", "--json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.update(format="recipe"), "not a plan of lowtide"),
        (lambda plan: plan.update(version=99), "99"),
        (lambda plan: plan["instructions"].pop(3), "damaged plan"),
        (lambda plan: plan.update(made_by=["gpt2"]), "made_by is a list"),
        (lambda plan: plan["made_by"].update(batch="two"), "batch of made_by is 'two'"),
        (lambda plan: plan["made_by"].update(payload="import os"), "made_by names payload"),
        (lambda plan: plan["made_by"].update(model=None), "model of made_by is None"),
        (lambda plan: plan["made_by"].update(batch=10**6, sequence=10**6), "more than 268,435,456 elements"),
        (lambda plan: plan["made_by"]["settings"].update(attn_implementation="who/ever"), "code from elsewhere"),
    ],
)
def test_a_damaged_plan_is_refused(plan_path, tmp_path, change, message):
    plan = json.loads(plan_path.read_text(encoding="utf-8"))
    change(plan)
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(plan), encoding="utf-8")
    assert message in error_of("inspect", str(damaged))


def test_the_code_is_refused_where_the_model_is_another_one(plan_path, tmp_path):
    plan = json.loads(plan_path.read_text(encoding="utf-8"))
    plan["made_by"]["settings"]["n_layer"] = "3"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(plan), encoding="utf-8")
    assert "was made for another step" in error_of("inspect", str(other), "--code")
