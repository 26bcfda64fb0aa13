"""The rewritten module stays the user's module: class, parameters, signature, pickles, hooks."""

import copy
import inspect
import io
import math
import pickle
import types
import warnings

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import LowtideError, LowtideWarning
from lowtide.rewriter.run import rewriting
from side_by_side import backward_of, calling, differences, rewritten, trained
from small_models import small_model
from small_networks import Called
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Classifier(nn.Module):
    """A module at the top level of its file, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Scores of classes."""
        return self.head(self.body(x)) * scale


class Named(Classifier):
    """Has attributes that are called like lowtide's."""

    plan = "the user's own"


def data() -> torch.Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def test_the_rewritten_module_is_of_the_same_class_over_the_same_parameters():
    model = Classifier()
    small = lowtide.rewrite(model, "100%", (data(),), costs="flops")
    assert isinstance(small, Classifier) and type(small).__name__ == "Classifier" and small is not model
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(a is b for a, b in zip(small.parameters(), model.parameters(), strict=True))
    assert list(small.state_dict()) == list(model.state_dict())
    assert str(inspect.signature(small.forward)) == str(inspect.signature(model.forward))
    assert type(model) is Classifier and not hasattr(model, "lowtide")


def test_planning_leaves_the_model_and_the_random_stream_alone():
    model = Classifier()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    lowtide.rewrite(model, "100%", (data(),))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_attribute_called_plan_stays_the_users():
    small = rewritten(Named(), data())
    assert small.plan == "the user's own" and small.lowtide.plan.peak_bytes > 0


def test_state_is_loaded_and_saved_under_the_same_names():
    model, other = Classifier(), Classifier()
    small = rewritten(model, data())
    small.load_state_dict(other.state_dict())
    other.load_state_dict(small.state_dict())
    assert differences(trained(other, calling(data())), trained(small, calling(data()))) == []


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda small: pickle.loads(pickle.dumps(small)),
        lambda small: _through_torch(small),
        lambda small: copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(small)))),
    ],
    ids=["deepcopy", "pickle", "torch.save", "all of them"],
)
def test_copies_and_pickles_train_alike_under_the_same_budget(copied):
    model = Classifier()
    small = rewritten(model, data())
    backward_of(small(data()))
    small.zero_grad(), small.load_state_dict(model.state_dict())
    duplicate = copied(small)
    assert type(duplicate) is type(small) and duplicate.head.weight is not small.head.weight
    assert duplicate.plan.peak_bytes == small.plan.peak_bytes and duplicate.lowtide is not small.lowtide
    assert differences(trained(model, calling(data())), trained(duplicate, calling(data()))) == []
    assert duplicate.code == small.code


def _through_torch(small):
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_a_shallow_copy_is_a_rewritten_module_too():
    small = rewritten(Classifier(), data())
    duplicate = copy.copy(small)
    backward_of(duplicate(data()))
    assert duplicate.head.weight is small.head.weight


def test_transformers_saves_and_loads_a_rewritten_model(tmp_path):
    model, kwargs = small_model("gpt2", layers=1)
    kwargs["use_cache"] = False
    small = rewritten(model, budget="100%", **kwargs)
    small.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).train()
    assert type(loaded) is type(model)
    assert differences(trained(loaded, calling(**kwargs), 1), trained(small, calling(**kwargs), 1)) == []
    assert isinstance(small, type(model)) and small.config.architectures == ["GPT2LMHeadModel"]


def test_hooks_on_inner_modules_are_warned_about_by_name():
    model = Classifier()
    model.body[1].register_forward_hook(lambda *_: None)
    model.head.register_full_backward_hook(lambda *_: None)
    with pytest.warns(LowtideWarning, match=r"hooks on inner modules do not fire .*: body.1, head;"):
        lowtide.rewrite(model, "100%")


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's
def test_hooks_on_the_module_itself_fire_once_a_call():
    model = Classifier()
    fired = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = rewritten(model, data())
    small.register_forward_pre_hook(lambda m, args: fired.append("before"))
    small.register_forward_hook(lambda m, args, out: (fired.append("after"), out * 2)[1])
    small.register_full_backward_hook(lambda m, incoming, outgoing: fired.append("backward"))
    torch.manual_seed(0)
    y = small(data())
    y.sum().backward()
    torch.manual_seed(0)
    assert torch.equal(y, model(data()) * 2)
    assert fired == ["before", "after", "backward"]


def test_a_hook_that_computes_is_captured():
    model = Classifier()
    model.body[1].register_forward_hook(lambda m, args, out: out * 3)
    with pytest.warns(LowtideWarning):
        small = rewritten(model, data())
    assert differences(trained(model, calling(data())), trained(small, calling(data()))) == []


def test_a_forward_of_the_instance_is_the_one_rewritten():
    model = Classifier()
    model.forward = types.MethodType(lambda self, x: Classifier.forward(self, x) + 1, model)
    small = lowtide.rewrite(model, "100%", (data(),), costs="flops")
    torch.manual_seed(0)
    result = small(data())
    torch.manual_seed(0)
    assert torch.equal(result, model(data()))


def test_a_model_is_not_rewritten_twice():
    with pytest.raises(LowtideError, match="rewritten already; pass the original"):
        lowtide.rewrite(rewritten(Classifier(), data()), "100%")


def test_a_model_with_a_rewritten_part_is_not_rewritten():
    model = nn.Sequential(rewritten(Classifier(), data()), nn.Linear(3, 3))
    with pytest.raises(LowtideError, match=r"part 0 .* is rewritten already"):
        lowtide.rewrite(model, "100%")


def test_more_kinds_of_calls_than_are_kept_are_warned_about():
    small = lowtide.rewrite(nn.Linear(4, 4), "1MiB", costs="flops")
    small.lowtide.steps.most_bytes = 1
    with pytest.warns(LowtideWarning, match="2 kinds of calls exceed.* differ in their tensors: pad batches"):
        for rows in range(1, 4):
            small(torch.randn(rows, 4)).sum().backward()
    assert len(small.lowtide.steps) == 1


def test_as_many_kinds_of_calls_are_kept_as_memory_holds(monkeypatch):
    small = lowtide.rewrite(nn.Linear(4, 4), "1MiB", costs="flops")
    for rows in range(1, 25):
        small(torch.randn(rows, 4)).sum().backward()
    monkeypatch.setattr(rewriting, "measure_step", None)
    for rows in range(1, 25):
        small(torch.randn(rows, 4)).sum().backward()


def test_code_before_the_first_call_says_what_to_do():
    with pytest.raises(LowtideError, match="no code before the first training-mode call"):
        _ = lowtide.rewrite(nn.Linear(4, 4), "1MiB").code


def test_settings_changed_after_rewriting_are_followed():
    model = Classifier()
    small = rewritten(model, data(), budget="1MiB")
    for module in (model, small):
        torch.manual_seed(0)
        calling(data())(module)
        module.body[2].p = 0.5
        module.body[4].momentum = 0.3
    assert differences(trained(model, calling(data())), trained(small, calling(data()))) == []


def test_parts_exchanged_after_rewriting_are_followed():
    model = Classifier()
    small = rewritten(model, data(), budget="1MiB")
    head = nn.Sequential(nn.Linear(8, 4), nn.Tanh())
    model.head, small.head = head, copy.deepcopy(head)
    small.body[0].weight = nn.Parameter(small.body[0].weight.detach() * 2)
    model.body[0].weight = nn.Parameter(model.body[0].weight.detach() * 2)
    assert differences(trained(model, calling(data())), trained(small, calling(data()))) == []


def test_planning_leaves_a_running_profiler_alone():
    model = Classifier()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = lowtide.rewrite(copy.deepcopy(model), "100%", (torch.randn(17, 8),), costs="flops")
        small(torch.randn(17, 8)).sum().backward()
    small.load_state_dict(model.state_dict())
    assert any(event.key == "aten::addmm" for event in profiler.key_averages())
    assert differences(trained(model, calling(data())), trained(small, calling(data()))) == []


@pytest.mark.parametrize("nested", [False, True])
def test_zeros_of_either_sign_are_calls_of_their_own(nested):
    signed = Called(
        lambda m, x, s: torch.copysign(m.net(x), torch.full((1,), s[0] if nested else s)), net=nn.Linear(4, 4)
    )
    small = lowtide.rewrite(signed, "100%", costs="flops")
    for zero in (0.0, -0.0):
        out = small(torch.randn(2, 4), [zero] if nested else zero)
        assert torch.equal(torch.signbit(out), torch.full((2, 4), math.copysign(1.0, zero) < 0))
