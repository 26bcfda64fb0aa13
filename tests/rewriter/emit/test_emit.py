"""The generated code: as long as what differs, readable, and exactly what runs."""

import ast
import re
import traceback

import lowtide
import pytest
import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from side_by_side import assert_trains_alike, rewritten
from small_models import small_model
from small_networks import Called
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def gpt2_code(layers: int) -> str:
    """The code of a narrow GPT-2 at half of what keeping everything takes."""
    sizes = {"vocab_size": 64, "n_embd": 16, "n_head": 2, "n_positions": 64, "n_layer": layers}
    model = build_model("gpt2", overrides=sizes)
    kwargs = sample_batch(model, 8, 64)
    return lowtide.rewrite(model, "50%", (), kwargs, costs="flops", solver="recipes").code


def test_the_code_of_24_layers_is_at_most_half_longer_than_that_of_6():
    short, long = gpt2_code(6), gpt2_code(24)
    # The table of the functions of each block has one line per block.
    lines = len(long.splitlines()) / len(short.splitlines())
    characters = len(long) / len(short)
    assert lines <= 1.5 and characters <= 1.5, f"{lines:.2f} times the lines, {characters:.2f} times the characters"


def blocks(count: int = 4) -> nn.Sequential:
    parts = [nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 8)) for _ in range(count)]
    return nn.Sequential(*parts, nn.Linear(8, 2))


def test_equal_blocks_share_one_function_and_numbers_that_differ_are_arguments():
    model = nn.Sequential(nn.Linear(8, 8), *list(blocks(8))[:-1])
    for number, block in enumerate(model[1:]):
        block[2].p = 0.1 + number / 20
    code = rewritten(model, torch.randn(64, 8)).code
    assert code.count("def forward_") < 8 and code.count("def backward_") < 8
    assert re.search(r"lowtide\.draw_bits\.default\(\[64, 32\], constant_\d+, device\('cpu'\)\)", code)


def test_the_code_is_what_runs(monkeypatch):
    seen = []
    original = compile

    def watched(source, filename, mode):
        seen.append(source)
        return original(source, filename, mode)

    monkeypatch.setattr("lowtide.rewriter.emit.program.compile", watched, raising=False)
    small = rewritten(blocks(), torch.randn(64, 8))
    assert seen == [small.code]


def test_the_code_is_plain_python_of_aten_calls_and_those_of_lowtides_kernels():
    small = rewritten(blocks(), torch.randn(64, 8))
    tree = ast.parse(small.code)
    assert all(isinstance(node, ast.FunctionDef) for node in tree.body)
    called = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    allowed = ("aten.", "lowtide.", "values.clear", "generator_state", "drawing_from", "torch.", "device")
    assert all(ast.unparse(function).startswith(allowed) for function in called)
    assert "Recomputes" in small.code


def test_numbers_that_are_drawn_again_come_from_the_recorded_state_and_training_is_exact():
    layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def noisy(m, x):
        for layer in m.layers:
            x = x + layer(torch.tanh(x * torch.rand_like(x)))
        return x

    small = assert_trains_alike(Called(noisy, layers=layers), torch.randn(256, 32))
    assert "with drawing_from(state" in small.code


def test_every_function_is_named_in_the_table_of_blocks():
    small = rewritten(blocks(), torch.randn(64, 8))
    names = {node.name for node in ast.parse(small.code).body}
    table = small.code[small.code.index("# block, forward, backward") :]
    assert names == set(re.findall(r"(?:forward|backward)_\d+", table))
    *blocks_shown, joined = table.splitlines()[1:]
    assert len(blocks_shown) == len(small.plan.problem.block_classes)
    assert joined == "# Blocks that are one node of autograd's graph: 0, 1–3"


def test_a_traceback_shows_the_line_of_generated_code():
    model, kwargs = small_model("gpt2", layers=1)
    small = rewritten(model, **kwargs)
    kwargs["input_ids"] = kwargs["input_ids"] + 10_000
    with pytest.raises(IndexError) as caught:
        small(**kwargs)
    frames = traceback.extract_tb(caught.value.__traceback__)
    inside = [frame for frame in frames if frame.filename.startswith("<lowtide GPT2LMHeadModel")]
    assert inside and "aten.embedding" in inside[-1].line and inside[-1].line in small.code


def test_the_code_states_its_budget_and_peak_in_its_head():
    small = rewritten(blocks(), torch.randn(64, 8), budget="90%")
    head = small.code.splitlines()[:3]
    assert head[0].startswith("# One training step of Sequential") and "budget" in head[1] and "Peak" in head[1]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), True, 1e-30, -0.0, 2**40])
def test_constants_of_all_kinds_are_written_right(value):
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            return y.masked_fill(x > 0, value) + torch.full((4,), value, dtype=torch.float64)

    model = Filled()
    x = torch.randn(3, 4)
    small = rewritten(model, x)
    assert torch.equal(small(x).nan_to_num(7.0), model(x).nan_to_num(7.0))
