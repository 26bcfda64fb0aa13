"""Values that forward leaves in modules and arguments in addition to its result."""

import collections
import copy
import dataclasses
import types
from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import CaptureError, LowtideWarning
from side_by_side import assert_exact_everywhere, differences, plans, rewritten, trained
from small_networks import Called, batch, deep
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


def net(forward: Any, **parts: Any) -> nn.Module:
    return Called(forward, net=deep(), **parts)


class Expert(nn.Module):
    """A layer that leaves its penalty on itself, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.penalty = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.penalty = y.square().mean()
        return y


def test_a_loss_left_on_modules_carries_its_gradient():
    module = nn.Sequential(Expert(), nn.Dropout(0.2), Expert(), nn.Linear(16, 1))
    small = rewritten(module, batch(), budget="100%")

    def step(m: Any) -> Tensor:
        loss = m(batch()).mean() + 0.1 * (m[0].penalty + m[2].penalty)
        loss.backward()
        return loss.detach()

    expected = trained(copy.deepcopy(module), step)
    with pytest.warns(LowtideWarning, match=r"gradients arrive at 0\.penalty, 2\.penalty, the output"):
        assert differences(expected, trained(small, step)) == []
    assert type(small[0].penalty) is Tensor
    small[0].penalty = small[2].penalty = None
    copy.deepcopy(small)


def test_lists_grow_and_dicts_are_filled():
    def forward(m: Any, x: Tensor, seen: dict[str, Any]) -> Tensor:
        h = m.net(x)
        m.seen.append(h.mean())
        m.state["h"] = h.detach()
        m.box.value = h.sum()
        seen["h"], seen["rows"] = h, len(x)
        return h * seen.get("scale", 1.0)

    module = net(forward)
    module.seen, module.state, module.box = [], {}, types.SimpleNamespace(value=None)
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    for seed in range(3):
        eager_seen, small_seen = {"scale": 2.0}, {"scale": 2.0}
        for m, seen in ((module, eager_seen), (small, small_seen)):
            torch.manual_seed(seed)
            m(batch(), seen).sum().backward()
        assert (
            eager_seen.keys() == small_seen.keys()
            and torch.equal(eager_seen["h"], small_seen["h"])
            and small_seen["rows"] == 64
        )
        assert torch.equal(module.state["h"], small.state["h"]) and torch.equal(module.box.value, small.box.value)
        assert [float(v.detach()) for v in module.seen] == [float(v.detach()) for v in small.seen]


def test_a_list_that_forward_empties_holds_one_step():
    def forward(m: Any, x: Tensor) -> Tensor:
        m.seen = []
        h = m.net(x)
        m.seen.append(h.mean())
        return h

    small = lowtide.rewrite(net(forward), "100%", costs="flops")
    for _ in range(3):
        small(batch()).sum().backward()
    assert len(small.seen) == 1


def leaves_activations(m: Any, x: Tensor) -> Tensor:
    """Leaves them on an attribute, in a dict, in a new list and in a list that is emptied."""
    h = m.net(x)
    m.last = h
    m.state["h"] = h.detach() * 2
    m.made = [h * 3]
    m.emptied.clear()
    m.emptied.append(h.exp())
    return h.square().mean()


def left_in(module: Any) -> list[Tensor]:
    """Return the values that a step has left there."""
    left = [module.last, module.state.get("h"), *module.made, *module.emptied]
    return [tensor for tensor in left if tensor is not None]


@pytest.mark.parametrize("budget", ["100%", "smallest"])
def test_what_the_step_before_has_left_takes_no_bytes_next_to_its_successor(budget):
    torch.manual_seed(0)
    module, x = net(leaves_activations), batch(rows=256)
    module.last, module.state, module.made, module.emptied = None, {}, [], []
    budget_bytes = plans(module, x, count=2)[-1].peak_bytes if budget == "smallest" else budget
    small = lowtide.rewrite(copy.deepcopy(module), budget_bytes, costs="flops")
    for seed in range(4):
        for m in (module, small):
            m.zero_grad()
        held = [*small.parameters(), x, *left_in(small)]
        held_bytes = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())
        del held
        torch.manual_seed(seed)
        peak = lowtide.measure_peak(lambda: small(x).backward()) + held_bytes
        assert peak == small.plan.peak_bytes, f"step {seed}"
        torch.manual_seed(seed)
        module(x).backward()
        assert all(map(torch.equal, left_in(module), left_in(small)))


def test_verify_counts_what_the_step_before_has_left():
    module = net(leaves_activations)
    module.last, module.state, module.made, module.emptied = None, {}, [], []
    assert_exact_everywhere(module, batch(rows=256))


def test_a_step_that_may_begin_again_keeps_what_was_left_until_it_is_done():
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.net(x)
        if h.sum() > 1e6:
            return h * m.last
        m.last = h.detach()
        return h

    module = net(forward, last=None)
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    for scale in (1.0, 1.0, 1e9):
        given = []
        for m in (module, small):
            with torch.no_grad():
                m.net[-1].bias.fill_(scale)
            torch.manual_seed(0)
            out = m(batch())
            out.sum().backward()
            given.append(out)
        assert torch.equal(*given)


def test_tensors_in_an_object_of_ones_own_are_refused_by_name():
    class Holder:
        value = None

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.net(x)
        holder = Holder()
        holder.value = h
        m.holder = holder
        return h

    module = net(forward)
    with pytest.raises(CaptureError, match=r"forward leaves tensors in holder of the root module, a .*Holder"):
        lowtide.plan(module, "100%", (batch(),), costs="flops")
    assert not hasattr(module, "holder")


def test_a_shared_object_is_put_back_as_it_was():
    class Holder:
        value = 1

    def forward(m: Any, x: Tensor) -> Tensor:
        m.holder.value = 2
        return m.net(x)

    module = net(forward)
    module.holder = Holder()
    with pytest.warns(LowtideWarning, match=r"forward sets value of the root module\.holder: capture restored it"):
        lowtide.plan(module, "100%", (batch(),), costs="flops")
    assert module.holder.value == 1


@dataclasses.dataclass
class Result:
    """A field that is no argument of the constructor."""

    first: Tensor
    second: Tensor = dataclasses.field(init=False)


def test_containers_of_other_classes_come_back_as_they_are():
    def forward(m: Any, x: Tensor, counts: Any) -> Any:
        result = Result(m.net(x) * counts["scale"])
        result.second = result.first * 2
        return result

    module = net(forward)
    small = lowtide.rewrite(module, "100%", costs="flops")
    for counts in (collections.Counter(scale=2), collections.defaultdict(lambda: 2)):
        torch.manual_seed(0)
        expected = module(batch(), copy.copy(counts))
        torch.manual_seed(0)
        assert torch.equal(small(batch(), copy.copy(counts)).second, expected.second)


class Frozen(dict):
    """A dict that refuses every change, as configurations are."""

    def _refuse(self, *_args: Any, **_kwargs: Any) -> None:
        raise TypeError("frozen")

    def __reduce__(self) -> Any:
        return Frozen, (dict(self),)

    update = clear = pop = popitem = setdefault = __setitem__ = __delitem__ = _refuse  # pyright: ignore


def test_a_dict_that_refuses_changes_is_left_alone():
    module = net(lambda m, x: m.net(x) * m.config["scale"])
    module.config = Frozen(scale=2.0)
    small = rewritten(module, batch(), budget="100%")
    torch.manual_seed(0)
    expected = module(batch())
    torch.manual_seed(0)
    assert torch.equal(small(batch()), expected) and dict(small.config) == {"scale": 2.0}


def test_keys_that_print_alike_are_other_calls():
    module = net(lambda m, d: m.net(d.get(1, d.get("1"))) * (2 if 1 in d else 3))
    small = lowtide.rewrite(module, "100%", costs="flops")
    for key in (1, "1"):
        torch.manual_seed(0)
        expected = module({key: batch()})
        torch.manual_seed(0)
        assert torch.equal(small({key: batch()}), expected)
