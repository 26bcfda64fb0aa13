"""Operations whose results' shapes depend on a mask or on lengths alone."""

import copy

import lowtide
import pytest
import torch
from side_by_side import differences, rewritten, trained
from small_networks import Called
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_ctc_is_eagers(reduction, zero_infinity, as_tensors):
    def forward(m, x: Tensor, targets: Tensor, inputs, lengths) -> Tensor:
        logits = m.net(x).log_softmax(-1)
        options = {"reduction": reduction, "zero_infinity": zero_infinity}
        return functional.ctc_loss(logits, targets, inputs, lengths, **options).sum()

    targets = torch.randint(1, 5, (2, 4), generator=torch.Generator().manual_seed(0))
    inputs, lengths = [9, 3], [4, 3]  # the second cannot be aligned if a letter repeats
    length_arguments = (torch.tensor(inputs), torch.tensor(lengths)) if as_tensors else (inputs, lengths)
    module = Called(forward, net=nn.Linear(6, 5))
    x = torch.randn(9, 2, 6, generator=torch.Generator().manual_seed(1))
    small = rewritten(module, x, targets, *length_arguments, budget="100%")

    def step(m: nn.Module) -> Tensor:
        loss = m(x, targets, *length_arguments)
        loss.backward()
        return loss.detach()

    assert differences(trained(copy.deepcopy(module), step, 2), trained(small, step, 2)) == []


def test_what_a_mask_selects_follows_the_mask():
    module = Called(lambda m, x, mask: m.net(x).masked_select(mask).square().sum(), net=nn.Linear(6, 5))
    small = lowtide.rewrite(copy.deepcopy(module), "100%", costs="flops")
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    for mask in (x[:, :5] > 0, x[:, :5] > 0.5, x[:, :1] > 0):
        for m in (module, small):
            m.zero_grad()
            m(x, mask).backward()
        assert torch.equal(module.net.weight.grad, small.net.weight.grad)
