"""Plan files that anyone may have made: refused with PlanError whatever is in them, or as good as they were."""

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import PlanError
from lowtide.rewriter.plan import plan_file
from lowtide.rewriter.plan.plan_file import load_made_by
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def data() -> torch.Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def coded() -> tuple[nn.Module, torch.Tensor]:
    """A network with values to encode, and what it is called with."""
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    return module, torch.randn(256, 64, generator=torch.Generator().manual_seed(1))


APPROXIMATE = {"fidelity": "approximate", "error_budget": 1.0, "costs": "flops"}


@pytest.fixture
def saved(tmp_path):
    """A model, a plan that runs something again, and the file the plan is saved in."""
    module = nn.Sequential(
        *(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 8)) for _ in "ab")
    )
    plan = lowtide.plan(module, "80%", (data(),), costs="flops")
    assert plan.extra_seconds > 0
    lowtide.save_plan(plan, tmp_path / "plan.json", made_by={"model": "gpt2"})
    return module, plan, tmp_path / "plan.json"


def everywhere(payload, path=()):
    """Every part of a JSON value, by its path."""
    for place, part in (
        payload.items() if isinstance(payload, dict) else enumerate(payload) if isinstance(payload, list) else ()
    ):
        yield (*path, place)
        yield from everywhere(part, (*path, place))


ODD = (float("inf"), float("nan"), -1, 2**63, True, "\x1b]0;x\x07", None, [], {}, 0.5)


def test_an_odd_value_anywhere_is_refused_or_no_matter_and_never_shown_raw(saved):
    _, plan, path = saved
    text = path.read_text()
    chance = random.Random(0)
    refused = 0
    for place in everywhere(json.loads(text)):
        payload = json.loads(text)
        part = payload
        for step in place[:-1]:
            part = part[step]
        part[place[-1]] = chance.choice(ODD)
        path.write_text(json.dumps(payload))
        try:
            assert lowtide.load_plan(path).schedule == plan.schedule
        except PlanError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 1000
    assert refused > 100


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format":' * 20_000, "9" * 5000, f'{{"format": "lowtide plan", "version": {"1" * 5000}}}', "NaN"],
    ids=["deep lists", "deep dicts", "digits", "version of many digits", "no number"],
)
def test_what_python_cannot_read_is_refused_as_any_other_damage(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError):
        lowtide.load_plan(path)
    with pytest.raises(PlanError):
        load_made_by(path)


def test_no_more_is_read_than_a_plan_can_have(saved, monkeypatch):
    _, _, path = saved
    monkeypatch.setattr(plan_file, "_MOST_PARTS", 100)
    with pytest.raises(PlanError, match="parts, more than 100"):
        lowtide.load_plan(path)
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(PlanError, match=r"more than .* bytes"):
        lowtide.load_plan(path)


def test_a_step_that_would_take_for_ever_to_simulate_is_refused(saved):
    _, _, path = saved
    payload = json.loads(path.read_text())
    payload["problem"]["ops"][1]["reads"] *= 50_000
    payload["instructions"] += [["run", 1]] * 5_000
    path.write_text(json.dumps(payload))
    started = time.perf_counter()
    with pytest.raises(PlanError, match=r"reads and makes values .* times"):
        lowtide.load_plan(path)
    assert time.perf_counter() - started < 10


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "folder", "nul\0", "\x1b[2J"])
def test_what_is_no_file_is_refused_at_once_and_named_plainly(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PlanError, match="cannot be read as a plan") as refused:
        lowtide.load_plan(tmp_path / name)
    assert str(refused.value).isprintable()


def test_texts_of_a_plan_reach_errors_on_one_line_without_control_characters(saved):
    module, plan, path = saved
    payload = json.loads(path.read_text())
    payload["problem"]["ops"][3].update(name="\x1b[2J\nimport os", kind="\u202eexec\n", module="a\x00b")
    path.write_text(json.dumps(payload))
    with pytest.raises(PlanError, match="another step") as refused:
        lowtide.rewrite(module, plan.budget_bytes, (data(),), plan=path, costs="flops")
    assert str(refused.value).isprintable()


def test_a_plan_with_errors_that_nothing_can_be_said_of_is_loaded(tmp_path):
    module, x = coded()
    plan = lowtide.plan(module, "89%", (x,), **APPROXIMATE)
    value = next(number for number, value in enumerate(plan.problem.values) if value.encodings)
    values = [*plan.problem.values]
    unknown = tuple(replace(encoding, error=float("inf")) for encoding in values[value].encodings)
    values[value] = replace(values[value], encodings=(*values[value].encodings, *unknown))
    problem = replace(plan.problem, values=tuple(values))
    lowtide.save_plan(replace(plan, problem=problem), tmp_path / "plan.json")
    assert lowtide.load_plan(tmp_path / "plan.json").problem == problem


def test_writers_at_once_leave_a_whole_plan(saved):
    _, plan, path = saved
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: lowtide.save_plan(plan, path), range(12)):
            pass
    assert lowtide.load_plan(path) == plan
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_saving_follows_no_link_that_somebody_laid_next_to_the_plan(saved):
    _, plan, path = saved
    victim = path.with_name("victim")
    victim.write_text("mine")
    path.with_name(f"{path.name}.{os.getpid()}.part").symlink_to(victim)
    lowtide.save_plan(plan, path)
    assert victim.read_text() == "mine" and lowtide.load_plan(path) == plan
