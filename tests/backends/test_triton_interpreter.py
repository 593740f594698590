"""The strict interpreter: each check catches a kernel that has the mistake, and lets a right one pass."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl
from triton_strict import KernelError, only_programs, program_order, record_traffic


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def unmasked_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i), mask=i < n)


@triton.jit
def one_total_kernel(x_ptr, total_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(total_ptr, tl.load(total_ptr) + tl.sum(tl.load(x_ptr + i), 0))


@triton.jit
def atomic_total_kernel(x_ptr, total_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(total_ptr, tl.sum(tl.load(x_ptr + i), 0))


@triton.jit
def shift_kernel(x_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i + 1, tl.load(x_ptr + i))


@triton.jit
def halves_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i // 2, tl.load(x_ptr + i))


@triton.jit
def copy_twice_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i))
    tl.store(out_ptr + i, tl.load(x_ptr + i))


@triton.jit
def read_back_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i))
    tl.store(x_ptr + i, tl.load(out_ptr + i))


@triton.jit
def sum_without_other_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + i, mask=i < n), 0))


@triton.jit
def copy_without_other_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n))


@triton.jit
def gather_without_other_kernel(x_ptr, index_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + tl.load(index_ptr + i, mask=i < n)))


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, SUBTRACT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    tl.store(out_ptr + i, x - y if SUBTRACT else x + y)


@triton.jit
def squares_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x * x + x)


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + i), tl.load(b_ptr + i), input_precision=PRECISION)
    tl.store(out_ptr + i, product)


@triton.jit
def first_kernel(order_ptr, x_ptr, BLOCK: tl.constexpr):
    tl.store(order_ptr + tl.program_id(0), tl.atomic_add(x_ptr, 1))


@triton.jit
def offset_kernel(x_ptr, out_ptr, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.load(x_ptr + i))


@triton.jit
def byte_offset_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    first = x_ptr.to(tl.int64, bitcast=True) + 1
    tl.store(out_ptr + i, tl.load(first.to(tl.pointer_type(tl.float32), bitcast=True) + i))


@triton.autotune([triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 64})], key=["n"])
@triton.jit
def tuned_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


def test_a_right_kernel_passes_and_its_bytes_are_counted() -> None:
    x, out = torch.randn(100).half(), torch.full((100,), 7.0).half()
    with record_traffic() as launches:
        copy_kernel[(4,)](x, out, 100, BLOCK=32)
    assert torch.equal(x, out)
    assert (launches[0].kernel, launches[0].loaded, launches[0].stored) == (
        "copy_kernel",
        {"x_ptr": 200},
        {"out_ptr": 200},
    )


def test_load_beyond_a_tensor() -> None:
    with pytest.raises(KernelError, match=r"load out of bounds in program 3: byte 508 of x_ptr \[100\], 400 bytes"):
        unmasked_kernel[(4,)](torch.randn(100), torch.empty(100), 100, BLOCK=32)


def test_load_beyond_a_tensor_into_its_neighbour() -> None:
    """Both tensors lie in one storage: the address is valid, the tensor is the wrong one."""
    both = torch.randn(200)
    with pytest.raises(KernelError, match="load out of bounds"):
        unmasked_kernel[(4,)](both[:100], both[100:], 100, BLOCK=32)


def test_race_of_two_programs_that_add_to_one_number() -> None:
    with pytest.raises(KernelError, match=r"race: program .* total_ptr"):
        one_total_kernel[(3,)](torch.randn(96), torch.zeros(1), BLOCK=32)


def test_atomics_may_share() -> None:
    x, total = torch.randn(96), torch.zeros(1)
    atomic_total_kernel[(3,)](x, total, BLOCK=32)
    assert torch.allclose(total, x.sum(), atol=1e-5)


def test_race_through_two_views_of_one_storage() -> None:
    both = torch.randn(97)
    with pytest.raises(KernelError, match="race"):
        copy_kernel[(3,)](both[:96], both[1:], 96, BLOCK=32)


def test_race_of_a_reader_and_a_writer() -> None:
    with pytest.raises(KernelError, match=r"race: program .* x_ptr"):
        shift_kernel[(3,)](torch.randn(97), BLOCK=32)


def test_one_store_that_writes_an_element_twice() -> None:
    with pytest.raises(KernelError, match="duplicate write: one store of program 0 to out_ptr"):
        halves_kernel[(1,)](torch.randn(32), torch.empty(32), BLOCK=32)


def test_two_stores_that_write_an_element_twice() -> None:
    with pytest.raises(KernelError, match="duplicate write: two stores of program 0 to out_ptr"):
        copy_twice_kernel[(1,)](torch.randn(32), torch.empty(32), BLOCK=32)


def test_a_program_that_reads_what_it_wrote() -> None:
    with pytest.raises(KernelError, match="program 0 reads back what it wrote to out_ptr"):
        read_back_kernel[(1,)](torch.randn(32), torch.empty(32), BLOCK=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masked_lanes_are_poison(dtype: torch.dtype) -> None:
    out = torch.zeros(1, dtype=dtype)
    sum_without_other_kernel[(1,)](torch.ones(100, dtype=dtype), out, 100, BLOCK=128)
    assert out.isnan().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_masked_lanes_of_integers_are_poison(dtype: torch.dtype) -> None:
    out = torch.zeros(128, dtype=dtype)
    copy_without_other_kernel[(1,)](torch.ones(100, dtype=dtype), out, 100, BLOCK=128)
    assert (out[:100] == 1).all() and (out[100:] == torch.iinfo(dtype).max // 3).all()


def test_a_masked_lane_is_no_index() -> None:
    x, index, out = torch.randn(16), torch.arange(16, dtype=torch.int32), torch.empty(16)
    gather_without_other_kernel[(1,)](x, index, out, 16, BLOCK=16)
    assert torch.equal(out, x)
    with pytest.raises(KernelError, match="load out of bounds"):
        gather_without_other_kernel[(1,)](x, index, out, 15, BLOCK=16)


def test_misaligned_access() -> None:
    with pytest.raises(KernelError, match="misaligned load of x_ptr for its 4-byte elements"):
        byte_offset_kernel[(1,)](torch.zeros(16), torch.empty(8), BLOCK=8)


def test_bfloat16_is_rounded_after_each_operation() -> None:
    x, out = torch.randn(256).bfloat16(), torch.empty(256).bfloat16()
    squares_kernel[(1,)](x, out, BLOCK=256)
    assert torch.equal(out, x * x + x)


def test_sums_of_bfloat16() -> None:
    x, out = torch.randn(100).bfloat16(), torch.empty(1).bfloat16()
    sum_without_other_kernel[(1,)](x, out, 100, BLOCK=64)
    assert torch.allclose(out.float(), x[:64].float().sum(), rtol=2**-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_16_bits_accumulate_in_float32(dtype: torch.dtype) -> None:
    a, b, out = torch.randn(32, 32).to(dtype), torch.randn(32, 32).to(dtype), torch.empty(32, 32)
    dot_kernel[(1,)](a, b, out, PRECISION="ieee", N=32)
    assert torch.allclose(out, a.float() @ b.float(), atol=1e-5)


def test_tf32_rounds_to_ten_bits() -> None:
    a, b, out = torch.randn(32, 32), torch.eye(32), torch.empty(32, 32)
    dot_kernel[(1,)](a, b, out, PRECISION="tf32", N=32)
    error = (out / a - 1).abs().max()
    assert 2**-13 < error <= 2**-11
    dot_kernel[(1,)](a, b, out, PRECISION="ieee", N=32)
    assert torch.equal(out, a)


def test_programs_run_in_the_order_of_the_seed() -> None:
    orders = []
    for seed in (1, 2, 1):
        with program_order(seed):
            order, counter = torch.empty(20, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
            first_kernel[(20,)](order, counter, BLOCK=1)
        orders.append(order.tolist())
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(20))


def test_offset_beyond_32_bits() -> None:
    with pytest.raises(KernelError, match="overflow: multiply of 32-bit integers"):
        offset_kernel[(4,)](torch.empty(8), torch.empty(32), 2**30, BLOCK=8)


@pytest.mark.parametrize(("subtract", "name", "sign"), [(False, "add", 1), (True, "subtract", -1)], ids=["add", "sub"])
def test_sums_beyond_32_bits(subtract: bool, name: str, sign: int) -> None:
    least, most = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max
    x = torch.full((8,), least if subtract else most, dtype=torch.int32)
    y, out = torch.zeros(8, dtype=torch.int32), torch.empty(8, dtype=torch.int32)
    arithmetic_kernel[(1,)](x, y, out, SUBTRACT=subtract, BLOCK=8)
    assert torch.equal(out, x)
    y[5] = 1
    with pytest.raises(KernelError, match=f"overflow: {name} of 32-bit integers"):
        arithmetic_kernel[(1,)](x, y, out, SUBTRACT=subtract, BLOCK=8)
    wide = torch.empty(8, dtype=torch.int64)
    arithmetic_kernel[(1,)](x.long(), y.long(), wide, SUBTRACT=subtract, BLOCK=8)
    assert torch.equal(wide, x.long() + sign * y.long())


def test_only_some_programs() -> None:
    x, out = torch.randn(100), torch.zeros(100)
    with only_programs(lambda count: {count - 1}):
        copy_kernel[(4,)](x, out, 100, BLOCK=32)
    assert torch.equal(out[96:], x[96:]) and not out[:96].any()


def test_the_tuner_needs_no_driver() -> None:
    x, out = torch.randn(100), torch.empty(100)
    tuned_kernel[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](x, out, 100)
    assert torch.equal(x, out)
