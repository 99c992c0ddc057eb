"""Two processes with half a batch each give the gradients of one with the whole."""

import os

import pytest
import torch
from peft import get_peft_model
from torch import multiprocessing
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from hadamard_core.testing_models import MODELS, output
from hut import HutConfig


def gradients(model, x):
    output(model, x).square().mean().backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}


def adapted():
    torch.manual_seed(0)
    return get_peft_model(MODELS["gpt2"].build(), HutConfig(init_weights=False)).eval()


def batch():
    return MODELS["gpt2"].inputs(torch.Generator().manual_seed(1))


def work(rank, store, results):
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(gradients(DistributedDataParallel(adapted()), batch().chunk(2)[rank]), f"{results}/{rank}.pt")
    destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")
def test_gradients_under_ddp(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hut", "hadamard_core.testing_models"])  # one import for both
    processes = [context.Process(target=work, args=(rank, tmp_path / "store", tmp_path)) for rank in range(2)]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    expected = gradients(adapted(), batch())
    for rank in range(2):
        actual = torch.load(tmp_path / f"{rank}.pt")
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-4)
