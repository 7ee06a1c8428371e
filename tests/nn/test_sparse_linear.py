"""First layers at the non-zeros alone, against the dense product."""

import pytest
import torch
from torch.autograd import gradcheck

from pyro_fcr.nn import ParallelMLP, SparseFeatures
from pyro_fcr.nonzeros import nonzeros


def features(n_cells=7, n_genes=5, dtype=torch.float64):
    x = torch.poisson(torch.full((n_cells, n_genes), 0.3)).to(dtype)
    x[2] = 0
    x[:, 1] = 0
    mean, scale = torch.rand(n_genes, dtype=dtype), torch.rand(n_genes, dtype=dtype) + 0.5
    return x, SparseFeatures(nonzeros(x), mean, scale), (x - mean) / scale


@pytest.mark.parametrize("width", [3, 64, 100])
def test_value_and_gradient_equal_the_dense_ones(width):
    _, sparse, dense = features()
    weight = torch.randn(5, width, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(width, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(7, width, dtype=torch.float64)
    results = []
    for out in (sparse.linear(weight, bias), dense @ weight + bias):
        results.append((out, *torch.autograd.grad((outer * out).sum(), (weight, bias))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_equal_finite_differences():
    _, sparse, _ = features(n_cells=4)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 3), (3,))]
    assert gradcheck(sparse.linear, inputs)


def test_networks_read_either():
    _, sparse, dense = features(dtype=torch.float32)
    fused = ParallelMLP(5, [2, 3], width=6)
    for ours, theirs in zip(fused(sparse), fused(dense), strict=True):
        torch.testing.assert_close(ours, theirs)
