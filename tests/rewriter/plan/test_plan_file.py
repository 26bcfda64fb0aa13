"""Plans in files: loaded as they were saved, refused when damaged, foreign, old, or of another step."""

import copy
import dataclasses
import json

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import PlanError
from side_by_side import calling, differences, smallest_bytes, trained
from small_models import small_model
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def model(width: int = 32) -> nn.Sequential:
    parts = [nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 8)) for _ in range(3)]
    return nn.Sequential(*parts, nn.Linear(8, 2))


def data() -> torch.Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path):
    """A model, its plan at the smallest budget, and the file the plan is saved in."""
    module = model()
    plan = lowtide.plan(module, smallest_bytes(module, data()), (data(),), costs="flops")
    lowtide.save_plan(plan, tmp_path / "plan.json")
    return module, plan, tmp_path / "plan.json"


def test_a_plan_is_loaded_as_it_was_saved(saved):
    _, plan, path = saved
    assert lowtide.load_plan(path) == plan
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]


def test_a_saved_plan_keeps_the_name_of_the_solver_that_made_it(saved):
    _, plan, path = saved
    path.write_text(json.dumps(json.loads(path.read_text()) | {"solver": "hierarchical"}))
    assert lowtide.load_plan(path) == dataclasses.replace(plan, solver="hierarchical")


def test_a_loaded_plan_is_run_without_solving(saved, monkeypatch):
    module, plan, path = saved

    def refuse(*_args, **_kwargs):
        raise AssertionError("solved again")

    monkeypatch.setattr("lowtide.solvers.portfolio.Portfolio.solve", refuse)
    small = lowtide.rewrite(copy.deepcopy(module), plan.budget_bytes, (data(),), costs="flops", plan=path)
    assert small.plan.schedule == plan.schedule
    assert differences(trained(module, calling(data())), trained(small, calling(data()))) == []


def test_a_plan_of_another_model_is_refused_with_the_first_difference(saved):
    _, plan, path = saved
    with pytest.raises(
        PlanError, match=r"another step: addmm_default of 0\.0 is given f32\[48\] here, f32\[32\] there; pass"
    ):
        lowtide.rewrite(model(width=48), plan.budget_bytes, (data(),), plan=path, costs="flops")
    with pytest.raises(PlanError, match=r"made for another step: .*"):
        lowtide.rewrite(model(), plan.budget_bytes, (data()[:32],), plan=plan, costs="flops")


def test_a_plan_above_the_budget_is_refused(saved):
    module, plan, path = saved
    with pytest.raises(PlanError, match=r"the plan peaks at .* here, above the budget"):
        lowtide.rewrite(module, plan.peak_bytes - 1, (data(),), plan=path, costs="flops")


def test_a_plan_for_the_step_before_an_optimizer_is_needed_does_not_hide_its_peak(saved):
    module, plan, path = saved
    optimizer = torch.optim.AdamW(module.parameters())
    with pytest.raises(PlanError, match="above the budget"):
        lowtide.rewrite(module, plan.peak_bytes, (data(),), plan=path, costs="flops", optimizer=optimizer)


def coded() -> tuple[nn.Module, torch.Tensor]:
    """A network with values to encode, and what it is called with."""
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    return module, torch.randn(256, 64, generator=torch.Generator().manual_seed(1))


APPROXIMATE = {"fidelity": "approximate", "error_budget": 1.0, "costs": "flops"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"costs": "flops"}, r"what \w+ of \d makes may be kept only unencoded here, in \d+ codes \(.* more\) there"),
        (
            {**APPROXIMATE, "error_budget": 1e-6},
            r"codes add .* of the gradient's own variance .* error_budget=1e-06 and",
        ),
    ],
)
def test_a_plan_with_codes_is_refused_where_they_are_not_allowed(tmp_path, options, message):
    module, x = coded()
    plan = lowtide.plan(module, "89%", (x,), **APPROXIMATE)
    assert plan.encoding_error > 1e-5
    lowtide.save_plan(plan, tmp_path / "plan.json")
    small = lowtide.rewrite(copy.deepcopy(module), plan.budget_bytes, (x,), plan=tmp_path / "plan.json", **APPROXIMATE)
    assert small.plan.encoded == plan.encoded
    with pytest.raises(PlanError, match=message) as refused:
        lowtide.rewrite(module, plan.budget_bytes, (x,), plan=tmp_path / "plan.json", **options)
    assert len(str(refused.value)) < 300


def test_files_that_are_no_plans_are_refused(saved, tmp_path):
    _, _, path = saved
    text = path.read_text()
    for content, named in (
        (text[: len(text) // 2], "is not JSON, so it is not a plan"),
        ("", "is not JSON"),
        ('{"hello": 1}', "is JSON but not a plan of lowtide"),
        ("[1, 2]", "is JSON but not a plan of lowtide"),
    ):
        path.write_text(content)
        with pytest.raises(PlanError, match=named):
            lowtide.load_plan(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="cannot be read as a plan"):
        lowtide.load_plan(path)
    with pytest.raises(PlanError, match="cannot be read as a plan"):
        lowtide.load_plan(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("version", "origin"),
    [
        (1, "was made by an older lowtide"),
        (99, "was not made by this lowtide"),
        ("two", "was not made by this lowtide"),
    ],
)
def test_a_plan_of_another_version_is_refused(saved, version, origin):
    _, _, path = saved
    payload = json.loads(path.read_text())
    path.write_text(json.dumps({**payload, "version": version}))
    with pytest.raises(PlanError, match=rf"{origin}: it has version {version!r}, and .* reads version 2; plan again"):
        lowtide.load_plan(path)


def drop_a_field(payload):
    del payload["segments"]


def name_no_operation(payload):
    payload["instructions"][3] = ["run", 10_000]


def name_no_instruction(payload):
    payload["instructions"][3] = ["exec", 1]


def free_too_early(payload):
    payload["instructions"].insert(1, ["free", payload["instructions"][0][1]])


def leave_out_a_run(payload):
    del payload["instructions"][0]


def grow_a_segment(payload):
    payload["segments"][0][2] += 1


def text_for_a_number(payload):
    payload["budget_bytes"] = "much"


def negative(payload):
    payload["instructions"][3][1] = -1


def cut_the_problem(payload):
    payload["problem"]["ops"] = payload["problem"]["ops"][:-1]


def read_what_is_not_there(payload):
    payload["problem"]["ops"][0]["reads"] = [99_999]


def make_bytes_negative(payload):
    payload["problem"]["values"][-1]["size_bytes"] = -1_000_000


SAID = {
    name_no_operation: r"instruction 3 names op 10000 of a step that has \d+\)",
    name_no_instruction: r"an instruction 'exec' is not one that plans have: run, free",
    drop_a_field: r"'segments' is missing",
}
DAMAGES = [
    drop_a_field,
    name_no_operation,
    name_no_instruction,
    free_too_early,
    leave_out_a_run,
    grow_a_segment,
    text_for_a_number,
    negative,
    cut_the_problem,
    read_what_is_not_there,
    make_bytes_negative,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_plan_is_refused(saved, damage):
    module, plan, path = saved
    payload = json.loads(path.read_text())
    damage(payload)
    path.write_text(json.dumps(payload))
    with pytest.raises(PlanError, match=SAID.get(damage, "plan")):
        loaded = lowtide.load_plan(path)
        lowtide.rewrite(module, plan.budget_bytes, (data(),), plan=loaded, costs="flops")


def test_saving_fails_whole(saved, tmp_path):
    _, plan, path = saved
    before = path.read_text()
    with pytest.raises(FileNotFoundError):
        lowtide.save_plan(plan, tmp_path / "no folder" / "plan.json")
    assert path.read_text() == before


def test_plans_of_transformers_go_through_files_and_other_processes(tmp_path):
    module, kwargs = small_model("gpt2", layers=2)
    plan = lowtide.plan(module, "90%", (), kwargs, costs="flops", solver="rotor")
    lowtide.save_plan(plan, tmp_path / "plan.json")
    other, _ = small_model("gpt2", seed=3, layers=2)
    small = lowtide.rewrite(other, plan.budget_bytes, (), kwargs, costs="flops", plan=tmp_path / "plan.json")
    assert small.plan.peak_bytes == plan.peak_bytes and "GPT2LMHeadModel" in small.code
