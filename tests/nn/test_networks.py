"""Fused networks against separate ones."""

import pytest
import torch
from torch import nn

from pyro_fcr.nn import MLP, ParallelMLP


def separate(fused: ParallelMLP, k: int) -> nn.Sequential:
    """Network k of a fused one, as torch layers with its weights copied."""
    w = fused.width
    layers = []
    weight = fused.first_weight_gk.data[:, k * w : (k + 1) * w].T.clone()
    first = nn.Linear(weight.shape[1], w)
    first.weight.data = weight
    first.bias.data = fused.first_bias_k.data[k * w : (k + 1) * w].clone()
    layers.append(first)
    for layer in range(len(fused.norms_kd)):
        norm = nn.LayerNorm(w)
        norm.weight.data = fused.norms_kd[layer].data[0, k].clone()
        norm.bias.data = fused.norms_kd[layer].data[1, k].clone()
        layers += [norm, nn.GELU()]
        last = layer == len(fused.norms_kd) - 1
        weight = fused.last_weight_kdo if last else fused.weights_kdd[layer]
        bias = fused.last_bias_ko if last else fused.biases_kd[layer]
        out = fused.n_out[k] if last else w
        linear = nn.Linear(w, out)
        linear.weight.data = weight.data[k, :, :out].T.clone()
        linear.bias.data = bias.data[k, 0, :out].clone()
        layers.append(linear)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fused_networks_equal_separate_ones(depth):
    fused = ParallelMLP(6, [4, 2, 7], width=5, depth=depth).double()
    for parameter in fused.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(9, 6, dtype=torch.float64)
    outputs = fused(x)
    assert [tuple(o.shape) for o in outputs] == [(9, 4), (9, 2), (9, 7)]
    for k, output in enumerate(outputs):
        alone = separate(fused, k)
        torch.testing.assert_close(output, alone(x))
    # Gradients of one output touch no other network.
    outputs[1].sum().backward()
    assert fused.last_weight_kdo.grad[[0, 2]].abs().sum() == 0
    assert fused.last_weight_kdo.grad[1].abs().sum() > 0
    assert fused.first_weight_gk.grad[:, :5].abs().sum() == 0
    alone = separate(fused, 1)
    alone(x).sum().backward()
    torch.testing.assert_close(fused.first_weight_gk.grad[:, 5:10].T, alone[0].weight.grad)


def test_a_shift_enters_each_network_at_its_own_place():
    fused = ParallelMLP(3, [2, 2], width=4, depth=1)
    x, shift = torch.randn(5, 3), torch.zeros(5, 8)
    shift[:, 4:] = torch.randn(5, 4)
    plain, shifted = fused(x), fused(x, shift)
    torch.testing.assert_close(plain[0], shifted[0])
    assert not torch.allclose(plain[1], shifted[1])
    alone = separate(fused, 1)
    torch.testing.assert_close(shifted[1], alone[1:](alone[0](x) + shift[:, 4:]))


def test_mlp_shapes_and_linear_case():
    assert MLP(3, 2, hidden=(8, 4))(torch.zeros(7, 5, 3)).shape == (7, 5, 2)
    flat = MLP(3, 2, hidden=(), last_bias=False)
    x = torch.randn(4, 3)
    torch.testing.assert_close(flat(2 * x), 2 * flat(x))


def test_a_linear_map_beside_is_added():
    network, beside = MLP(3, 5, hidden=(4,), last_bias=False), torch.nn.Linear(3, 5)
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(network(x, beside=beside), network(x) + beside(x))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        # A bias of -20 with five digits: half precision alone would keep two.
        beside.bias.fill_(-20.01)
        network.last.weight.zero_()
        beside.weight.zero_()
        torch.testing.assert_close(
            network(x, beside=beside), beside.bias.expand(2, 6, 5), rtol=0, atol=0
        )
