"""Name are data: whatever classes, parts, arguments and keys are called, none is run, and steps are eager's."""

import copy

import lowtide
import pytest
import torch
from side_by_side import calling, differences, rewritten, trained
from torch import nn

from benchmarks.fuzz.hostile_names import hostile_names, listening
from benchmarks.named_models import class_named, tried

pytestmark = pytest.mark.usefixtures("one_thread")

_BATCHES = 8  # of ten names each; `benchmarks.fuzz.names` tries thousands


@pytest.mark.parametrize("number", range(_BATCHES))
def test_hostile_names_are_not_run_and_steps_are_eagers(number, tmp_path):
    with listening(tmp_path) as canary:
        names = hostile_names(10 * _BATCHES, canary.call)[10 * number : 10 * (number + 1)]
        outcome = tried(names)
        assert (outcome.refused, outcome.wrong, canary.harm) == ("", [], [])


def test_hostile_names_go_through_profiles_and_plan_files(tmp_path):
    (tmp_path / "canary").mkdir(), (tmp_path / "plans").mkdir()
    with listening(tmp_path / "canary") as canary:
        outcome = tried(hostile_names(400, canary.call, seed=1)[-5:], tmp_path / "plans")
        assert (outcome.refused, outcome.wrong, canary.harm) == ("", [], [])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what it runs leaves a file open
def test_the_canary_hears_what_is_run(tmp_path):
    with listening(tmp_path) as canary:
        exec(f"x = {canary.call}")
        assert canary.harm == ["run", f"open {tmp_path / 'mark'}", "made mark"]


def test_a_name_cannot_stand_for_what_generated_code_uses():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(8, 8)
            for name in ("aten", "values", "constants", "torch", "device", "constant_0", "unused", "sum"):
                self.register_parameter(name, nn.Parameter(torch.rand(8)))
            self.register_buffer("constant", torch.rand(8))

        def forward(self, values, **named):
            x = self.lin(values).split(4, 1)[0].repeat(1, 2)
            for parameter in self.parameters(recurse=False):
                x = x * parameter + named["class"] * named["lambda"] * named["constant"]
            # numbers in which blocks differ, and tensors that forward makes of numbers
            x = (x * 2.0).clamp(min=float("-inf")) + torch.tensor([1.0] * 8) + torch.tensor([2.0] * 8)
            return (x.max(1)[0] * self.constant[0]).mean()

    torch.manual_seed(0)
    model = Model()
    arguments = {name: torch.rand(16, 8) for name in ("class", "lambda", "constant", "values")}
    small = rewritten(model, **arguments)
    assert differences(trained(model, calling(**arguments)), trained(small, calling(**arguments))) == []


def test_keys_of_a_batch_are_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    columns = {"age": torch.rand(3, 4), "x,\ny:print('run')": torch.rand(3, 4)}

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(model)

        def forward(self, columns):
            return self.inner(sum(columns.values())).sum()

    table = Table()
    small = rewritten(table, columns)
    assert differences(trained(table, calling(columns)), trained(small, calling(columns))) == []
    assert "print(" not in small.code


def test_a_class_name_is_one_line_of_a_comment_and_of_a_traceback():
    small = lowtide.rewrite(class_named("X\nprint('run')\n#")(["a"]), "100%", ({"a": torch.rand(2, 4)},), costs="flops")
    assert small.code.startswith(r"# One training step of X\nprint('run')\n#, rewritten by lowtide.")
    names = [function.__code__.co_filename for function in small.lowtide._last.ready.program.functions.values()]
    assert all(name.isprintable() for name in names)
