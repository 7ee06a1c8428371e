"""The sleep phase against posteriors known in closed form."""

from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from tiny import fit, tiny_adata, tiny_fcr
from torch import nn

from pyro_fcr.infer.sleep import dream, sleep

NOISE = 0.5


@dataclass
class Cells:
    """A batch of numbers."""

    counts: torch.Tensor

    def __len__(self):
        return len(self.counts)

    def replace(self, **changes):
        return replace(self, **changes)

    def to(self, device):
        return self


class Source:
    n_cells = 400

    def batches(self, *, epoch):
        yield Cells(torch.full((400, 1), 99.0))  # of the batch's own counts nothing is learned


def model(batch):
    """Two standard normal latents whose noisy sum is seen: their posterior is correlated."""
    with pyro.plate("cells", len(batch)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(batch), 2), 1.0).to_event(1))
        return pyro.sample(
            "counts", dist.Normal(z.sum(1, keepdim=True), NOISE).to_event(1), obs=batch.counts
        )


class MeanField(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)
        self.log_scale = nn.Parameter(torch.full((2,), -2.0))

    def forward(self, batch):
        with pyro.plate("cells", len(batch)):
            q = dist.Normal(self.linear(batch.counts), self.log_scale.exp()).to_event(1)
            return pyro.sample("z", q)


def test_a_mean_field_guide_takes_the_posteriors_marginals_not_its_narrower_conditionals():
    guide = MeanField()
    losses = sleep(
        model, guide, Source(), steps=1500, learning_rate=0.03, seed=0, device=torch.device("cpu")
    )
    # z | y: mean y / (2 + s²) each, variance 1 − 1 / (2 + s²); given the other, s² / (1 + s²).
    gain = 1 / (2 + NOISE**2)
    assert guide.linear.weight.flatten().tolist() == pytest.approx([gain, gain], abs=0.02)
    assert guide.linear.bias.tolist() == pytest.approx([0, 0], abs=0.03)
    variance = guide.log_scale.exp().square().tolist()
    assert variance == pytest.approx([1 - gain, 1 - gain], rel=0.05)
    assert NOISE**2 / (1 + NOISE**2) < 0.4 * variance[0]
    assert len(losses) == 1500
    assert sum(losses[-50:]) < sum(losses[:50])


def test_dreamt_counts_come_from_dreamt_latents_and_the_guides_globals():
    def with_global(batch):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("cells", len(batch)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(batch), 1), 1.0).to_event(1))
            pyro.sample("counts", dist.Normal(z + shift, 1e-4).to_event(1), obs=batch.counts)

    def guide(batch):
        pyro.sample("shift", dist.Normal(50.0, 1e-4))
        with pyro.plate("cells", len(batch)):
            pyro.sample("z", dist.Normal(torch.full((len(batch), 1), -7.0), 1e-4).to_event(1))

    shared, local, batch = dream(with_global, guide, Cells(torch.zeros(300, 1)))
    assert float(shared["shift"]) == pytest.approx(50, abs=0.01)
    assert set(local) == {"z"}
    assert float(local["z"].mean()) == pytest.approx(0, abs=0.3)
    torch.testing.assert_close(batch.counts, local["z"] + 50.0, atol=0.01, rtol=0)


@pytest.mark.slow
def test_calibrating_changes_the_guide_alone_and_its_intervals_hold():
    fcr = tiny_fcr(tiny_adata())
    fit(fcr, max_epochs=30)
    state = torch.get_rng_state()
    kept = {k: v.clone() for k, v in fcr.model.state_dict().items()}
    encoders = fcr.guide.locals.encoders
    with torch.no_grad():
        for k, size in enumerate(encoders.n_out):
            encoders.last_bias_ko[k, :, size // 2 : size] -= 1.0
    assert _inside(fcr) < 0.7
    losses = fcr.calibrate(steps=300, learning_rate=5e-3, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(kept[k], v) for k, v in fcr.model.state_dict().items())
    assert losses.iloc[-20:].mean() < losses.iloc[:20].mean()
    assert fcr.settings["calibrated"] == 300
    assert 0.85 < _inside(fcr) < 0.95


def _inside(fcr):
    """Share of simulated latents inside their 90 % intervals."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        _, local, batch = dream(fcr.model, fcr.guide, fcr.cells.batch())
        q = fcr.guide.locals.posteriors(batch)
        inside = [((z - q[k].mean).abs() < 1.645 * q[k].stddev) for k, z in local.items()]
    return float(torch.cat(inside, 1).float().mean())
