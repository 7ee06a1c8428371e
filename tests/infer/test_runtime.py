"""Threads, precision and compilation are entered and left."""

import pytest
import torch
from tiny import fit, tiny_adata, tiny_fcr
from torch import nn

from pyro_fcr.errors import FitError
from pyro_fcr.infer.runtime import compiled, default_threads, networks_at, threads
from pyro_fcr.nn import MLP, ParallelMLP


def test_threads_are_set_and_given_back():
    before = torch.get_num_threads()
    with threads(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    with pytest.raises(FitError, match="no thread"), threads(0):
        pass
    with threads(4):
        assert default_threads(512 * 2000) == 1
        assert default_threads(4096 * 8000) == 3
        assert default_threads(10**9) == 4


def test_networks_in_bfloat16_hand_on_float32():
    parallel, mlp = ParallelMLP(5, [2, 3], width=8), MLP(5, 4)
    both = nn.ModuleDict({"a": parallel, "b": mlp})
    x = torch.randn(6, 5)
    exact = mlp(x)
    seen = []
    handle = mlp.last.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    with networks_at("bf16", both, torch.device("cpu")):
        coarse = mlp(x)
        assert {out.dtype for out in parallel(x)} == {torch.float32}
    assert seen == [torch.bfloat16]
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, exact)
    torch.testing.assert_close(coarse, exact, rtol=0.05, atol=0.05)
    handle.remove()
    assert torch.equal(mlp(x), exact)
    with pytest.raises(FitError, match="unknown precision"), networks_at("f8", both, "cpu"):
        pass


def test_tf32_is_a_setting_of_the_context():
    before = torch.get_float32_matmul_precision()
    with networks_at("tf32", nn.Linear(1, 1), torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_networks_are_compiled_for_a_while():
    both = nn.ModuleDict({"b": MLP(5, 4)})
    with compiled(both, wanted=True):
        assert both["b"]._compiled_call_impl is not None
    assert both["b"]._compiled_call_impl is None
    with compiled(both, wanted=False):
        assert both["b"]._compiled_call_impl is None


def test_a_model_trains_in_bfloat16_networks():
    adata = tiny_adata()
    exact, coarse = tiny_fcr(adata), tiny_fcr(adata)
    a, b = fit(exact, max_epochs=8), fit(coarse, max_epochs=8, precision="bf16", threads=1)
    assert b["loss"].iloc[-1] == pytest.approx(a["loss"].iloc[-1], rel=0.02)
    assert b["loss"].iloc[-1] != a["loss"].iloc[-1]
