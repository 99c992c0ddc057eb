"""Scratch memory is one piece a thread, and nothing that an op returns or keeps is in it."""

import threading

import pytest
import torch
from torch.testing import assert_close

from hadamard_core.functional import low_rank_linear, scaled_linear, scratch
from hadamard_core.functional.scratch import scratch_like


def test_the_same_memory_in_every_shape():
    large = scratch_like(torch.empty(8, 6), torch.float32)
    small = scratch_like(torch.empty(3, 5), torch.float32)
    assert large.data_ptr() == small.data_ptr()
    assert small.shape == (3, 5)
    assert small.is_contiguous()


def test_it_grows():
    few = scratch_like(torch.empty(2, 2), torch.float16)
    assert scratch_like(torch.empty(200, 300), torch.float16).shape == (200, 300)
    assert scratch_like(few, torch.float16).shape == (2, 2)


def test_strides_are_kept():
    transposed = torch.empty(5, 3).t()
    assert scratch_like(transposed, torch.float32).stride() == transposed.stride()


def test_dtypes_have_memory_of_their_own():
    single, double = (scratch_like(torch.empty(4, 4), dtype) for dtype in (torch.float32, torch.float64))
    single.fill_(1)
    double.fill_(2)
    assert (single == 1).all()


@pytest.mark.parametrize("tensor", [torch.empty(4, 6)[:, :3], torch.empty(4, 6, device="meta")], ids=["gaps", "meta"])
def test_new_memory_has_to_do(tensor):
    assert scratch_like(tensor, torch.float32) is None


def test_a_thread_keeps_no_more_than_the_limit(monkeypatch):
    monkeypatch.setattr(scratch, "_thread", threading.local())
    monkeypatch.setattr(scratch, "LARGEST_BYTES", 64)
    assert scratch_like(torch.empty(4, 4), torch.float32) is not None
    assert scratch_like(torch.empty(4, 5), torch.float32) is None
    assert scratch_like(torch.empty(4, 4), torch.float64) is None


def test_threads_do_not_share():
    addresses = [scratch_like(torch.empty(4, 4), torch.float32).data_ptr()]
    thread = threading.Thread(
        target=lambda: addresses.append(scratch_like(torch.empty(4, 4), torch.float32).data_ptr())
    )
    thread.start()
    thread.join()
    assert addresses[0] != addresses[1]


def test_made_in_inference_mode_it_serves_outside(monkeypatch):
    monkeypatch.setattr(scratch, "_thread", threading.local())
    with torch.inference_mode():
        scratch_like(torch.empty(4, 4), torch.float32).fill_(1)
    scratch_like(torch.empty(4, 4), torch.float32).fill_(2)


def poison():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        scratch_like(torch.empty(64, 64), dtype).fill_(float("nan"))


def scaled(compute, dtype, features=6, out=7, tokens=5):
    random = torch.Generator().manual_seed(0)
    sizes = ((tokens, features), (out, features), (out,), (features,), (out,), (out,))
    tensors = [torch.randn(size, generator=random).to(dtype).requires_grad_() for size in sizes]
    return tensors, lambda *each: scaled_linear(*each, compute=compute)


def low_rank(compute, dtype, features=6, out=7, tokens=9, r=3):
    random = torch.Generator().manual_seed(0)
    sizes = ((tokens, features), (out, features), (out,), (r, features), (out, r), (r,), (out,))
    tensors = [torch.randn(size, generator=random).to(dtype) for size in sizes]
    frozen = (1, 3, 4) if compute == "compose" else ()
    tensors = [each.requires_grad_(place not in frozen) for place, each in enumerate(tensors)]
    return tensors, lambda x, weight, bias, down, up, d, b: low_rank_linear(
        x, weight, bias, down, up, 2.0, d, b, compute=compute
    )


# composing is for fp32 and above
CASES = [
    (op, compute, dtype)
    for op, compute in [(scaled, "weight"), (scaled, "activation"), (low_rank, "low_rank"), (low_rank, "compose")]
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
    if (compute, dtype) != ("compose", torch.bfloat16)
]


@pytest.mark.parametrize(("op", "compute", "dtype"), CASES)
def test_nothing_returned_or_kept_is_scratch(op, compute, dtype):
    tensors, function = op(compute, dtype)
    trained = [each for each in tensors if each.requires_grad]

    def run(after):
        y = function(*tensors)
        after()
        grads = torch.autograd.grad(y, trained, torch.ones_like(y))
        after()
        return y, *grads

    for found, expected in zip(run(poison), run(lambda: None), strict=True):
        assert found.isfinite().all()
        assert_close(found, expected, rtol=0, atol=0)
