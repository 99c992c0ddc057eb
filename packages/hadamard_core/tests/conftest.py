import sys

import pytest
import torch


def forget(kernels):
    """Drops the kernels' modules, so that they are imported anew."""
    for name in [name for name in sys.modules if name.startswith(f"{kernels.__name__}.")]:
        del sys.modules[name]
        vars(kernels).pop(name.rpartition(".")[2], None)


@pytest.fixture(scope="module")
def kernel_device():
    """The device to test the kernels on: CUDA where there is one, else a CPU through triton's interpreter.

    Triton decides between the two when a function is decorated, by TRITON_INTERPRET. Other tests may have imported it
    before, so what it decorated then is wrapped anew, and the kernels' modules are imported anew; both are put back.
    """
    triton = pytest.importorskip("triton")
    if torch.cuda.is_available():
        yield "cuda"
        return

    from triton.runtime.interpreter import InterpretedFunction

    from hadamard_core import kernels

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in (triton.language, triton.language.standard):
            for name, function in list(vars(module).items()):
                if isinstance(function, triton.JITFunction):
                    patch.setattr(module, name, InterpretedFunction(function.fn))
        forget(kernels)
        with kernels.interpreted():
            yield "cpu"
        forget(kernels)
