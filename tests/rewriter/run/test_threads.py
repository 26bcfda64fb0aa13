"""Other threads go on while a plan is made: they see no exchanged parameters, and their draws are theirs."""

import copy
import random
import threading
from collections.abc import Callable

import lowtide
import numpy
import pytest
import torch
from small_networks import Called, batch, deep
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def run_alongside(background: Callable[[], None], work: Callable[[], None]) -> list[BaseException]:
    """Run `work` here while another thread repeats `background`; return what that raised."""
    stop, raised = threading.Event(), []

    def repeat() -> None:
        while not stop.is_set():
            try:
                background()
            except BaseException as error:
                raised.append(error)
                return

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    return raised


def test_another_thread_may_draw_and_seed():
    def background() -> None:
        random.random()
        numpy.random.rand(2)
        torch.manual_seed(0)
        torch.rand(2)

    module = Called(lambda m, x: m.net(x), net=nn.Linear(16, 3))
    assert run_alongside(background, lambda: lowtide.rewrite(module, "100%", (batch(),), costs="flops")) == []


def test_what_another_thread_draws_meanwhile_is_not_forwards():
    def draw_elsewhere() -> None:
        thread = threading.Thread(target=lambda: numpy.random.rand(2))
        thread.start()
        thread.join()

    module = Called(lambda m, x: (m.net(x), draw_elsewhere())[0], net=nn.Linear(16, 3))
    lowtide.plan(module, "100%", (batch(),), costs="flops")


def test_another_thread_may_run_the_module_that_is_captured():
    module = deep(depth=2).eval()
    eager_result = module(batch())
    module.train()

    def background() -> None:
        with torch.no_grad():
            eval_view = copy.copy(module)
            eval_view.training = False
            assert all(type(p) is nn.Parameter for p in eval_view.parameters())
            assert torch.equal(torch.nn.functional.linear(batch(), module[0][0].weight)[:1, :1], expected)

    expected = torch.nn.functional.linear(batch(), module[0][0].weight)[:1, :1].detach()
    raised = run_alongside(background, lambda: lowtide.plan(module, "100%", (batch(),), costs="flops"))
    assert raised == []
    assert torch.equal(module.eval()(batch()), eager_result)


def test_two_threads_plan_and_train():
    raised: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            module = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.Linear(16, 4))
            small = lowtide.rewrite(module, "100%", costs="flops", time_limit=0.5)
            for rows in range(3):
                small(torch.randn(4 + rows + seed, 16)).sum().backward()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []


@pytest.mark.parametrize("draw", [random.random, lambda: numpy.random.rand()], ids=["python", "numpy"])
def test_draws_of_this_thread_are_refused(draw):
    state = random.getstate(), numpy.random.get_state()[1].copy()
    with pytest.raises(lowtide.CaptureError, match="random numbers"):
        lowtide.plan(Called(lambda m, x: m.net(x) * draw(), net=deep()), "100%", (batch(),), costs="flops")
    assert random.getstate() == state[0] and (numpy.random.get_state()[1] == state[1]).all()
