"""Kernels in Triton: where they serve, that they compile for a GPU, and that `triton_cases` pass."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lowtide.kernels.backend import triton_dispatch, triton_launch
from lowtide.kernels.backend.triton_dispatch import triton_version

ROOT = Path(__file__).resolve().parents[3]
GPU = torch.device("cuda", 0)
MODULES = ("packing.packed_codes", "pooling.pooling", "loss.cross_entropy_rows")
needs_triton = pytest.mark.skipif(not triton_dispatch.find_spec("triton"), reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in a new process: one that has imported triton has decided for good whether it interprets kernels."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**inherited, **environment})


def assert_cases_pass(folder: Path, **environment: str) -> None:
    cases = sorted(map(str, Path(__file__).with_name("triton_cases").glob("*_cases.py")))
    # The interpreter computes with numpy, which warns where numbers are infinite or none.
    options = ("-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning")
    done = python("-m", "pytest", *options, *cases, TRITON_CACHE_DIR=str(folder), **environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_triton
def test_through_the_interpreter_kernels_give_what_they_should(tmp_path):
    assert_cases_pass(tmp_path, TRITON_INTERPRET="1")


@pytest.mark.gpu
@needs_triton
@needs_gpu
def test_on_a_gpu_kernels_give_what_they_should(tmp_path):
    assert_cases_pass(tmp_path)


TYPES = {
    torch.uint8: "u8",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Has kernels compiled for an H200, which needs no GPU, in place of launching them; gives what came of it."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 leaves nothing to compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    made = []

    def compile_for_gpu(kernel, programs, device, *arguments, num_warps=4, enable_fp_fusion=True, **constants):
        constants |= {
            kernel.arg_names[i]: 1 for i, value in enumerate(arguments) if isinstance(value, int) and value == 1
        }
        signature = dict.fromkeys(kernel.arg_names, "constexpr")
        aligned = {}
        for i, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
            if isinstance(value, torch.Tensor):
                signature[name] = f"*{TYPES[value.dtype]}"
            elif name not in constants:
                signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if isinstance(value, torch.Tensor) or value % 16 == 0:
                aligned[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, aligned)
        options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        made.append(triton.compile(source, GPUTarget("cuda", 90, 32), options))

    for name in MODULES:
        monkeypatch.setattr(import_module(f"lowtide.kernels.{name}_triton"), "launch", compile_for_gpu)
    return made


def assert_machine_code(made: list, count: int) -> None:
    assert len(made) == count
    assert all(kernel.asm["cubin"] and ".target sm_90" in kernel.asm["ptx"] for kernel in made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_products_with_bits_compile_for_a_gpu(compiled, dtype, elements, monkeypatch):
    from lowtide.kernels.packing import bits_triton

    monkeypatch.setattr(triton_launch, "_INT32_ELEMENTS", 1000)  # the larger number takes 64 bits
    truths = torch.ones(elements, dtype=torch.bool)
    packed = bits_triton.pack(truths)
    bits_triton.unpack(packed, truths)
    bits_triton.multiply(torch.ones(elements, dtype=dtype), packed, 1 / 0.9)
    assert_machine_code(compiled, 3)
    if dtype == torch.bfloat16:  # rounds to nearest, which the interpreter does not and the cases make up for
        assert "cvt.rn.bf16" in compiled[2].asm["ptx"]


def assert_rounds_as_torch(kernels: list) -> None:
    """Check that nothing is less exact than torch: no approximate quotients, no numbers below the normal ones taken
    as 0.
    """
    for kernel in kernels:
        assert not any(instruction in kernel.asm["ptx"] for instruction in (".ftz", ".approx", "div.full"))


@pytest.mark.parametrize(
    ("bits", "dtype", "int32_elements"),
    [(1, torch.bfloat16, 2**31), (3, torch.float32, 1000), (3, torch.float64, 2**31), (8, torch.float32, 2**31)],
)
def test_codes_in_few_bits_compile_for_a_gpu(compiled, bits, dtype, int32_elements, monkeypatch):
    from lowtide.kernels.few_bit import few_bit_triton
    from lowtide.kernels.packing import packed_codes_triton

    monkeypatch.setattr(triton_launch, "_INT32_ELEMENTS", int32_elements)
    x = torch.ones(1 << 13, dtype=dtype)
    table = torch.arange(2**bits, dtype=torch.promote_types(dtype, torch.float32))
    code = packed_codes_triton.pack(torch.ones(1 << 13, dtype=torch.uint8), bits)
    packed_codes_triton.unpack(code, bits, len(x))
    few_bit_triton.encode(x, table[1:], table.int(), bits)
    few_bit_triton.decode(code, table.to(dtype), bits, x)
    few_bit_triton.multiply(x, code, table, bits)
    assert_machine_code(compiled, 5)
    assert_rounds_as_torch(compiled)
    if dtype == torch.bfloat16:
        assert "cvt.rn.bf16" in compiled[4].asm["ptx"]


@pytest.mark.parametrize(
    ("bits", "group", "dtype", "stochastic", "hadamard", "int32_elements"),
    [
        (4, 256, torch.bfloat16, True, True, 2**31),
        (3, 8, torch.float32, False, False, 1000),
        (2, 4096, torch.float64, True, True, 2**31),
    ],
)
def test_codes_of_groups_compile_for_a_gpu(
    compiled, bits, group, dtype, stochastic, hadamard, int32_elements, monkeypatch
):
    from lowtide.kernels.quantize import groups_triton

    monkeypatch.setattr(triton_launch, "_INT32_ELEMENTS", int32_elements)
    x = torch.ones(1 << 13, dtype=dtype)
    code = groups_triton.encode(x, bits, group, stochastic, hadamard, 7)
    groups_triton.decode(code, x, bits, group, stochastic, hadamard, 7)
    assert_machine_code(compiled, 2)
    assert_rounds_as_torch(compiled)
    assert "div.rn.f32" in compiled[0].asm["ptx"]
    assert not any("fma.rn.f32" in kernel.asm["ptx"] for kernel in compiled)  # products are rounded by themselves


@pytest.mark.parametrize(
    ("dtype", "is_open", "nan_inside"), [(torch.float64, False, False), (torch.bfloat16, True, True)]
)
def test_comparisons_with_thresholds_compile_for_a_gpu(compiled, dtype, is_open, nan_inside):
    from lowtide.kernels.exact_codes import threshold_bits_triton
    from lowtide.kernels.exact_codes.threshold_bits import Thresholds

    x = torch.ones(1 << 13, dtype=dtype)
    bits = threshold_bits_triton.pack_inside(x, Thresholds(0.5, is_open=is_open, nan_inside=nan_inside))
    threshold_bits_triton.unpack_inside(bits, x[:2], x)
    threshold_bits_triton.unpack_classes(threshold_bits_triton.pack_classes(x, -0.5, 0.5), x[:4], x)
    assert_machine_code(compiled, 4)
    assert_rounds_as_torch(compiled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [[1, 1], [3, 2]], ids=str)
def test_pooling_compiles_for_a_gpu(compiled, dtype, kernel):
    from lowtide.kernels.pooling import pooling_triton

    x, y, codes = torch.ones(2, 64, 33, dtype=dtype), torch.ones(2, 32, 16, dtype=dtype), torch.ones(99).byte()
    pooling_triton.pool(x, y, codes, 1, kernel, [2, 2], [1, 0], [1, 1])
    pooling_triton.pool_backward(y, codes, x, 3, kernel, [2, 2], [1, 0], [1, 2])
    assert_machine_code(compiled, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("smoothing", "weighted"), [(0.0, False), (0.1, True)])
def test_cross_entropy_compiles_for_a_gpu(compiled, dtype, smoothing, weighted):
    from lowtide.kernels.loss import cross_entropy_rows_triton

    logits, rows = torch.ones(2, 50257, dtype=dtype), torch.ones(2, dtype=torch.promote_types(dtype, torch.float32))
    weights, targets = rows.new_ones(50257) if weighted else None, torch.zeros(2, dtype=torch.int64)
    arguments = (targets, rows, weights, rows[0], rows[1], smoothing, -100, rows.clone())
    cross_entropy_rows_triton.softmax_rows(logits, *arguments)
    assert_machine_code(compiled, 1)


def test_kernels_that_run_on_a_cpu_do_not_import_triton():
    load = "spec = u.spec_from_file_location('lowtide', '__init__.py', submodule_search_locations=['.'])"
    program = (  # by location, so that it holds for a checkout that is not installed too
        f"import importlib.util as u, sys, torch; {load}; sys.modules['lowtide'] = u.module_from_spec(spec)\n"
        "import lowtide.kernels.loss.linear_cross_entropy\n"
        "from lowtide.kernels.packing.bits import pack_bits\n"
        "from lowtide.kernels.quantize.groups import encode_groups\n"
        "from lowtide.kernels.few_bit.few_bit import decode_levels, encode_by_borders\n"
        "from lowtide.kernels.pooling.pooling import max_pool2d_codes\n"
        "pack_bits(torch.ones(9, dtype=torch.bool))\n"
        "encode_groups(torch.ones(9), 4, 8, True, True, 0)\n"
        "decode_levels(encode_by_borders(torch.ones(9), [0.0], [0, 1], 1), [0.0, 1.0], 1, [9], [1], torch.float32)\n"
        "max_pool2d_codes(torch.ones(1, 1, 4, 4), [2, 2], [], [0, 0], [1, 1], False)\n"
        "print('triton' in sys.modules)"
    )
    done = python("-c", program)
    assert done.stdout.strip() == "False", done.stderr


@pytest.fixture
def untried():
    """Forget what is known about devices, before and after."""
    for function in (triton_version, triton_dispatch.works):
        function.cache_clear()
    yield
    for function in (triton_version, triton_dispatch.works):
        function.cache_clear()


def test_on_a_cpu_triton_does_not_serve():
    assert triton_version("bits", torch.device("cpu")) is None


@pytest.mark.usefixtures("untried")
def test_where_triton_is_not_installed_plain_torch_serves(monkeypatch):
    monkeypatch.setattr(triton_dispatch, "find_spec", lambda _: None)
    assert triton_version("bits", GPU) is None


class OnAnyDevice:
    """The probe, with numbers that were to be made on a GPU: it squares them, does not, or fails."""

    def __init__(self, squares):
        self.squares = squares


def refuse(_):
    raise OSError("no C compiler")


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("squares", "reason"), [(refuse, "OSError: no C compiler"), (lambda _: torch.zeros(9), "squares of 0 to 8")]
)
def test_where_triton_does_not_work_plain_torch_serves_and_a_warning_says_why(monkeypatch, squares, reason):
    monkeypatch.setattr(triton_dispatch, "find_spec", lambda _: True)
    monkeypatch.setattr(triton_dispatch, "import_module", lambda *_: OnAnyDevice(squares))
    monkeypatch.setattr(torch, "arange", lambda count, device: torch.ones(count).cumsum(0) - 1)
    with pytest.warns(
        RuntimeWarning, match=f"does not work on cuda:0: kernels in plain torch run there instead.*{reason}"
    ):
        assert triton_version("bits", GPU) is None
    assert triton_version("pooling", GPU) is None  # found out and reported once


@pytest.mark.usefixtures("untried")
def test_where_triton_works_its_version_serves(monkeypatch):
    version = OnAnyDevice(torch.square)
    monkeypatch.setattr(triton_dispatch, "find_spec", lambda _: True)
    monkeypatch.setattr(triton_dispatch, "import_module", lambda *_: version)
    monkeypatch.setattr(torch, "arange", lambda count, device: torch.ones(count).cumsum(0) - 1)
    assert triton_version("bits", GPU) is version
