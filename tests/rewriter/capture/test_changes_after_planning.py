"""Changes of a module after it was planned are noticed, or refused if lowtide cannot follow them."""

import copy
import gc
import threading
import weakref

import lowtide
import pytest
import torch
from torch import nn
from torch.nn import functional


def same_step(eager, small, *args):
    """Return whether one step of each, from the same seed, gives the same loss, gradients and random state."""
    results = []
    for module in (eager, small):
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.grad = None
        loss = module(*args)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in module.parameters()], torch.get_rng_state()))
    (loss, gradients, state), (small_loss, small_gradients, small_state) = results
    assert torch.equal(loss, small_loss) and torch.equal(state, small_state)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients, small_gradients, strict=True))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return functional.cross_entropy(self.head(self.embed(tokens)), tokens)


def pair(model):
    return model, lowtide.rewrite(copy.deepcopy(model), "100%", costs="flops")


def test_a_parameter_that_is_untied_after_planning_is_trained_by_itself():
    eager, small = pair(Tied())
    tokens = torch.arange(20)
    same_step(eager, small, tokens)
    for module in (eager, small):
        torch.manual_seed(1)
        module.head.weight = nn.Parameter(torch.randn(50, 32))
    same_step(eager, small, tokens)


class Mean(nn.Module):
    """The mean of an activated layer, with things to change."""

    def __init__(self, activation=None):
        super().__init__()
        self.layer, self.activation = nn.Linear(8, 8), activation or nn.Tanh()
        self.settings = {"slope": 0.1}
        self.scale = torch.tensor(2.0)

    def forward(self, x):
        y = functional.leaky_relu(self.activation(self.layer(x)), self.settings["slope"])
        return (y * self.scale).pow(2).mean()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "activation", nn.Sigmoid()),
        lambda m: m.settings.update(slope=0.5),
        lambda m: setattr(m, "scale", torch.tensor(3.0)),
        lambda m: setattr(m.layer, "forward", lambda x: x * 2 + m.layer.bias),
    ],
    ids=["another_module", "a_dict", "a_held_tensor", "a_forward_of_its_own"],
)
def test_what_is_exchanged_after_planning_is_planned_again(change):
    eager, small = pair(Mean())
    x = torch.randn(4, 8)
    same_step(eager, small, x)
    for module in (eager, small):
        change(module)
    same_step(eager, small, x)


def test_a_function_exchanged_after_planning_is_planned_again():
    eager, small = pair(Mean(nn.Identity()))
    x = torch.randn(4, 8)
    for function in (functional.silu, functional.gelu):
        for module in (eager, small):
            del module.activation
            module.__dict__["activation"] = function
        same_step(eager, small, x)


def test_a_hook_added_to_an_inner_module_after_planning_is_captured_and_warned_of():
    eager, small = pair(Mean())
    x = torch.randn(4, 8)
    same_step(eager, small, x)
    for module in (eager, small):
        module.layer.register_forward_hook(lambda _module, _inputs, output: output * 2)
    with pytest.warns(lowtide.LowtideWarning, match="hooks on inner modules do not fire.*layer"):
        same_step(eager, small, x)


class Forked(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.layer, self.seed = nn.Linear(8, 8), seed

    def forward(self, x):
        if self.seed is None:
            state = torch.get_rng_state()
            noise = torch.randn_like(x)
            torch.set_rng_state(state)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                noise = torch.randn_like(x)
        return (self.layer(x) + noise).pow(2).mean()


@pytest.mark.parametrize("seed", [3, None])
def test_a_forward_that_sets_the_random_state_is_refused(seed):
    small = lowtide.rewrite(Forked(seed), "100%", costs="flops")
    with pytest.raises(lowtide.CaptureError, match="sets the state of torch's generator"):
        small(torch.randn(4, 8))
    torch.manual_seed(0)  # works again


def test_wrong_arguments_raise_what_eager_raises():
    small = lowtide.rewrite(Mean(), "100%", costs="flops")
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        small()


class Picked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.offset = nn.Linear(32, 32), torch.arange(32.0)

    def forward(self, x):
        return {"loss": (self.layer(x) + self.offset)[:, [3, 5, 7]].pow(2).mean()}


def test_tensors_that_a_module_holds_or_makes_of_numbers_are_counted_once():
    report = lowtide.verify(Picked(), "100%", (torch.randn(64, 32),), costs="flops")
    assert report.ok, report


def test_threads_that_call_for_the_first_time_at_once_plan_one_after_the_other():
    small = lowtide.rewrite(Mean(), "100%", costs="flops")
    x, raised = torch.randn(4, 8), []

    def call():
        try:
            small(x)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised


def test_a_number_that_forward_advances_is_warned_of():
    class Counting(Mean):
        steps = 0

        def forward(self, x):
            self.steps = self.steps + 1
            return super().forward(x) * min(1.0, self.steps / 10)

    model = Counting()
    model.steps = 0
    small = lowtide.rewrite(model, "100%", costs="flops")
    with pytest.warns(lowtide.LowtideWarning, match="forward sets steps of the root module"):
        small(torch.randn(4, 8))


def test_a_gradient_laid_out_unlike_the_output_is_warned_of():
    small = lowtide.rewrite(nn.Linear(8, 8), "100%", costs="flops")
    with pytest.warns(lowtide.LowtideWarning, match="laid|layout"):
        (small(torch.randn(4, 8)).t().contiguous() ** 2).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "simplex"}, "there is no solver 'simplex': choose among auto"),
        ({"optimizer": "adam"}, "optimizer='adam' is not a torch.optim.Optimizer"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, "none of the model's parameters"),
        ({"args": torch.zeros(3)}, "args is a Tensor, not a tuple"),
        ({"kwargs": [1]}, "kwargs is a list, not a mapping"),
        ({"plan": 3}, "plan=3 is neither a Plan nor the path"),
    ],
)
def test_options_are_checked_before_anything_is_planned(options, message):
    with pytest.raises(ValueError, match=message):
        lowtide.rewrite(Mean(), "100%", **options)


def test_a_forward_that_had_no_backward_is_planned_once_it_has_one():
    class Switched(Mean):
        detached = True

        def forward(self, x):
            loss = super().forward(x)
            return loss.detach() if self.detached else loss

    model = Switched()
    model.detached = True
    small = lowtide.rewrite(model, "100%", costs="flops")
    assert not small(torch.randn(4, 8)).requires_grad and small.plan is None
    small.detached = False
    small(torch.randn(4, 8)).backward()
    assert small.plan is not None


def test_plans_that_are_forgotten_let_go_of_their_captures():
    small = lowtide.rewrite(Mean(), "100%", costs="flops")
    small(torch.randn(1, 8))
    host_bytes = next(iter(small.lowtide.steps)).host_bytes  # others have more or fewer digits in their code
    small.lowtide.steps.most_bytes = 11 * host_bytes // 2
    graphs = [weakref.ref(step.measured.captured.graph) for step in small.lowtide.steps]
    with pytest.warns(lowtide.LowtideWarning, match=r"of the host's memory, which \d+ kinds of calls exceed"):
        for rows in range(2, 7):
            small(torch.randn(rows, 8))
    gc.collect()
    assert len(small.lowtide.steps) == 5 and graphs[0]() is None
