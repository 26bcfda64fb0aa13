"""The private interfaces of torch on which capture depends, each under a name that says its use.

No other file imports private parts of torch: when a release changes one of these, it is corrected here.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch._C._dynamo import eval_frame
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.utils import stateless
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

# Sees every operation below autograd, by `__torch_dispatch__`.
OperationMode = TorchDispatchMode
# A context in which no `__torch_function__` mode intercepts functions of torch.
no_function_modes = torch._C.DisableTorchFunction
# A context within `tensors_without_data` in which tensors have data again.
tensors_with_data = unset_fake_temporarily
# Returns the memory format that kernels derive from a tensor's strides: channels last, or contiguous.
suggested_format = suggest_memory_format
# The function that `torch.nn.functional.cross_entropy` calls.
cross_entropy_loss = torch._C._nn.cross_entropy_loss  # pyright: ignore[reportAttributeAccessIssue]
# The errors of an operation that runs without data although its result, or its result's shape, depends on data.
NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException)

# Functions of torch that `__torch_function__` modes intercept, as the modes receive them.
ONE_HOT: Any = torch._C._nn.one_hot  # pyright: ignore[reportAttributeAccessIssue]
ASSERTIONS = (torch._assert_async, torch.ops.aten._assert_async, torch.ops.aten._assert_async.msg)
MAKES_DUAL = (torch._make_dual, torch._VF._make_dual)
MAKES_NESTED = (
    torch._nested_tensor_from_mask,
    torch._nested_tensor_from_tensor_list,
    torch._nested_tensor_from_mask_left_aligned,
    torch._nested_view_from_buffer,
    torch._nested_view_from_jagged,
)


def tensors_without_data() -> AbstractContextManager[Any]:
    """Return a context in which new tensors have a device but no data, and every operation only computes shapes."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_default_generator(value: Any) -> bool:
    """Return whether a value is a generator from which torch draws by default."""
    return isinstance(value, torch._C.Generator) and (
        value is torch.default_generator or any(value is generator for generator in torch.cuda.default_generators)
    )


_CPU = torch.device("cpu")


def default_device() -> torch.device:
    """Return `torch.get_default_device()`, in a twentieth of its time if none was set."""
    is_set = torch._C._len_torch_function_stack() or getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return torch.get_default_device() if is_set else _CPU


def is_without_data(value: Any) -> bool:
    """Return whether a value is a tensor made under `tensors_without_data`."""
    return isinstance(value, FakeTensor)


@contextmanager
def functionalized() -> Iterator[None]:
    """Turn in-place operations on functional wrappers into operations that make new values, within this context."""
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


def functional_wrapper(tensor: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """Return a functional wrapper of a tensor: in-place changes of it are recorded as new values."""
    wrapper = torch._to_functional_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return wrapper.requires_grad_(requires_grad)


def is_functional(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a functional wrapper, as all tensors of a step are while it is captured."""
    return torch._is_functional_tensor(tensor)


def is_real(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has data: it is neither a functional wrapper nor fake, nor one of `torch.func`'s."""
    if is_functional(tensor) or is_without_data(tensor) or tensor.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore


def present_value(wrapper: torch.Tensor) -> torch.Tensor:
    """Return the present value of a functional wrapper, after views and in-place changes are replayed."""
    if not torch._is_functional_tensor(wrapper):
        return wrapper
    torch._sync(wrapper)
    return torch._from_functional_tensor(wrapper)


def forward_sequence() -> int:
    """Return the number of the autograd node that was made last."""
    return torch.autograd._get_sequence_nr() - 1


def backward_sequence() -> int | None:
    """Return the number of the autograd node that backward is running; None between two nodes."""
    running = torch._C._current_autograd_node()
    return None if running is None else running._sequence_nr()


def swapped(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> AbstractContextManager[Any]:
    """Return a context in which the module holds other tensors instead of the parameters and buffers of these names."""
    return stateless._reparametrize_module(model, tensors)


def left_alone_by_compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function such that `torch.compile` does not trace or compile it, or functions that it calls.

    `torch.compiler.disable` does the same, but imports the whole compiler, which takes seconds.
    """

    @functools.wraps(function)
    def alone(*args: Any, **kwargs: Any) -> Any:
        before = eval_frame.set_eval_frame(None)
        try:
            return function(*args, **kwargs)
        finally:
            eval_frame.set_eval_frame(before)

    called: Any = alone
    called._torchdynamo_disable = True  # where a frame that calls it is traced
    skipped = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT)
    eval_frame.set_code_exec_strategy(called.__code__, skipped)  # where it is run
    return called


@contextmanager
def checkpoints_passed() -> Iterator[list[None]]:
    """Make torch's own checkpoints plain calls in this thread, with the same bits, since lowtide plans recomputation.

    Yields a list that grows with each checkpoint.
    """
    before = getattr(_here, "passed", None)
    _let_threads_pass()
    passed = _here.passed = []
    try:
        yield passed
    finally:
        _here.passed = before


_here = threading.local()
_GENERATORS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")


def _let_threads_pass() -> None:
    """Make checkpoints test first whether this thread passes them. Other threads are not affected, so it stays."""
    composable = sys.modules.get("torch.distributed._composable.checkpoint_activation")
    for holder in (checkpoint, composable):
        for name in _GENERATORS:
            generator = getattr(holder, name, None)
            if generator is not None and not hasattr(generator, "lowtide_passes"):
                setattr(holder, name, _passing_generator(generator))
    if not hasattr(checkpoint.CheckpointFunction, "lowtide_passes"):
        checkpoint.CheckpointFunction = _passing_function(checkpoint.CheckpointFunction)


def _passing_generator(generator: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
    """Return the generator that runs around the function of a checkpoint that is not reentrant."""

    @functools.wraps(generator)
    def around(*args: Any, **kwargs: Any) -> Iterator[None]:
        passed = getattr(_here, "passed", None)
        if passed is None:
            return (yield from generator(*args, **kwargs))
        passed.append(None)
        given = inspect.signature(generator).bind(*args, **kwargs).arguments
        contexts = given.get("context_fn", checkpoint.noop_context_fn)()
        # Modes that choose values to save are not needed here.
        with nullcontext() if isinstance(contexts[0], TorchDispatchMode) else contexts[0]:
            yield

    around.lowtide_passes = True  # pyright: ignore
    return around


def _passing_function(plain: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Return the autograd function of a reentrant checkpoint, which becomes a plain call if this thread passes it."""

    class CheckpointFunction(plain):
        lowtide_passes = True

        @classmethod
        def apply(cls, *args: Any, **kwargs: Any) -> Any:
            passed = getattr(_here, "passed", None)
            if passed is None:
                return super().apply(*args, **kwargs)
            passed.append(None)
            function, _, *inputs = args
            if any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs):
                return function(*inputs)
            # No gradient passes a checkpoint whose arguments require none, even if its parameters do.
            with torch.no_grad():
                return function(*inputs)

    return CheckpointFunction


_ACCUMULATION_HOOKS = attrgetter("_post_accumulate_grad_hooks")


def any_waits_for_gradient(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether one of the tensors has a hook that runs after its gradient is accumulated."""
    return any(map(_ACCUMULATION_HOOKS, tensors))


# Switches of kernels that have a public setter but no public getter: those of a CPU, and those of other devices.
_SWITCHES_ON_CPU = (
    "_get_nnpack_enabled",
    "_is_xnnpack_enabled",
    "_get_onednn_allow_tf32",
    "_get_cpu_allow_fp16_reduced_precision_reduction",
)
_SWITCHES_ELSEWHERE = (
    "_get_cublas_allow_fp16_reduced_precision_reduction",
    "_get_cublas_allow_bf16_reduced_precision_reduction",
    "_get_cublaslt_prefer_grouped_gemm",
    "_get_cudnn_depthwise_kernel",
    "_get_rocm_fa_preferred_backend",
    "_get_fa3_sdp_enabled",
    "_get_sm_carveout_experimental",
    "_cuda_get_cudnn_benchmark_limit",
)
_SWITCHES_WITH_LISTS = ("_get_sdp_priority_order",)
_SWITCHES_OF_ATTENTION = ("_get_overrideable_sdp_enabled", "_get_sdp_priority_order")


def precision_getter(backend: str, operations: str) -> Callable[[], str]:
    """Return a getter of a backend's float32 precision: `torch.backends.….fp32_precision`, in a tenth of its time."""
    return functools.partial(torch._C._get_fp32_precision_getter, backend, operations)


def kernel_switches(device_type: str) -> dict[str, Callable[[], Hashable]]:
    """Return getters, by name, of kernel switches without a public getter; releases differ in them."""
    own = _SWITCHES_ON_CPU if device_type == "cpu" else _SWITCHES_ELSEWHERE
    names = [name for name in (*_SWITCHES_OF_ATTENTION, *own) if hasattr(torch._C, name)]
    return {name.removeprefix("_"): _hashed(getattr(torch._C, name), name) for name in names}


def _hashed(getter: Callable[[], Any], name: str) -> Callable[[], Hashable]:
    return (lambda: tuple(getter())) if name in _SWITCHES_WITH_LISTS else getter


# Overloads that a function, a method or a member of `torch.nn.functional` calls with the same arguments. The argument
# parser of those takes about a microsecond less than the general one. A test checks that they call exactly these.
_FUNCTIONS = """
    _log_softmax.default _scaled_dot_product_flash_attention_for_cpu.default _softmax.default add.Tensor addmm.default
    baddbmm.default bmm.default cat.default clone.default cos.default div.Tensor embedding.default exp.default mean.dim
    mm.default mul.Tensor native_layer_norm.default neg.default permute.default pow.Tensor_Scalar relu.default
    rsqrt.default sigmoid.default sin.default stack.default sub.Tensor sum.dim_IntList t.default tanh.default
    transpose.int unbind.int unsqueeze.default
"""
_METHODS = "add_.Tensor expand.default mul_.Tensor view.default"
_OF_LAYERS = "gelu.default gelu_backward.default silu.default silu_backward.default"
_HOLDERS: tuple[tuple[str, Any], ...] = (
    (_FUNCTIONS, torch._C._VariableFunctions),  # pyright: ignore[reportAttributeAccessIssue]
    (_METHODS, torch._C.TensorBase),
    (_OF_LAYERS, torch._C._nn),  # pyright: ignore[reportAttributeAccessIssue]
)
QUICK_OPERATIONS: dict[str, Callable[..., Any]] = {
    f"aten.{name}": getattr(holder, name.partition(".")[0])
    for names, holder in _HOLDERS
    for name in names.split()
    if hasattr(holder, name.partition(".")[0])
}
# These only make a tensor of the number and call the overload for tensors, which accepts the number as well.
QUICK_OPERATIONS |= {"aten.mul.Scalar": torch.mul, "aten.div.Scalar": torch.div}


def direct_call(operation: Any) -> Callable[..., Any]:
    """Return a callable that runs an overload without its Python layer, half a microsecond faster; same kernels.

    An operation in `QUICK_OPERATIONS` is called by the function there.
    """
    return QUICK_OPERATIONS.get(str(operation)) or getattr(operation, "_op", operation)


Engine = Callable[[Sequence[Any], bool], Any]  # runs a backward for these inputs; True if some may have no gradient
Answer = Callable[[Engine, Sequence[Any], bool, bool], Any]
_answers: dict[str, Answer] = {}


def answer_backwards(answer: Answer) -> None:
    """Run every backward of this process for chosen tensors as `answer(engine, inputs, allow_unused, accumulates)`.

    These are `torch.autograd.grad` and `backward(inputs=)`, which accumulates. Others are not affected, so it stays.
    `torch.compiler` replaces the same function while it traces.
    """
    _answers["answer"] = answer
    if not hasattr(torch.autograd._engine_run_backward, "lowtide_answers"):
        answering = _answering(torch.autograd._engine_run_backward)
        torch.autograd.graph._engine_run_backward = torch.autograd._engine_run_backward = answering


def _answering(plain: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(
        lambda outputs, gradients, retain_graph, create_graph, inputs, allow_unreachable, accumulate_grad: None
    )

    @functools.wraps(plain)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:  # another release of torch, with other arguments
            return plain(*args, **kwargs)
        if not arguments["inputs"]:
            return plain(*args, **kwargs)

        def engine(inputs: Sequence[Any], allow_unused: bool) -> Any:
            return plain(*{**arguments, "inputs": tuple(inputs), "allow_unreachable": allow_unused}.values())

        return _answers["answer"](
            engine, arguments["inputs"], arguments["allow_unreachable"], arguments["accumulate_grad"]
        )

    vars(run)["lowtide_answers"] = True
    return run
