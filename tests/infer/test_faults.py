"""What goes wrong while a model trains ends in one line, and what was trained is kept."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import fit, labelled, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.errors import FitError, NonFiniteError, WriteError
from pyro_fcr.infer import Settled, Terms, Trainer, faults


@pytest.fixture(scope="module")
def adata():
    return tiny_adata()


def weights(fcr):
    return {k: v.clone() for k, v in fcr._objective.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Explodes(pf.Penalty):
    """Not a number while a marked cell has molecules of the marked genes."""

    def __init__(self, cell=17, genes=None):
        super().__init__()
        self.cell, self.genes = cell, genes

    def forward(self, z, batch):
        marked = batch.index == self.cell if self.cell is not None else batch.index >= 0
        counts = batch.counts if self.genes is None else batch.counts[:, self.genes]
        # A slot is checked on two cells, and must pass.
        bad = (marked & (counts.sum(1) > 0)).any() & (len(batch) != 2)
        return z["z_x"].mean() * torch.where(bad, torch.nan, 1.0)


class ExplodingCritic(pf.penalties.Adversarial):
    """Its own loss is not a number from the third time on."""

    def bind(self, blocks, design):
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.times = 0

    def forward(self, z, batch):
        return 0.0 * z["z_x"].mean()

    def critic_loss(self, z, batch):
        self.times += len(batch) != 2
        return self.weight * (torch.nan if self.times > 2 else 1.0), torch.zeros(())


# ---- steps that are not finite ---------------------------------------------------------------


def test_skipped_steps_are_counted_and_change_nothing(adata, caplog):
    fcr = tiny_fcr(adata, penalties={"own": (Explodes(), 1.0)})
    seen = []
    advance = Trainer._advance

    def watched(self, batch, values):
        before = weights(fcr)
        record = advance(self, batch, values)
        seen.append(("skipped" in record, same(before, weights(fcr))))
        return record

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_advance", watched)
        history = fit(fcr, max_epochs=3, on_nonfinite="skip")
    # Four steps an epoch, one of which holds the cell.
    assert history["skipped"].tolist() == [1, 1, 1]
    assert sum(skipped for skipped, _ in seen) == 3
    assert all(skipped == unchanged for skipped, unchanged in seen)
    assert history.notna().all().all()
    said = [r.getMessage() for r in caplog.records if "a step is skipped" in r.getMessage()]
    assert len(said) == 1
    assert f"cells ['{fcr.cells.names[17]}']" in said[0]


def test_without_bad_steps_skipping_is_the_same_training(adata):
    a, b = tiny_fcr(adata), tiny_fcr(adata)
    history = fit(a, on_nonfinite="skip")
    assert history["skipped"].sum() == 0
    assert "skipped" not in fit(b)
    assert same(weights(a), weights(b))


def test_too_many_skipped_steps_end_the_run(adata):
    fcr = tiny_fcr(adata, penalties={"own": (Explodes(None), 1.0)})
    with pytest.raises(NonFiniteError, match=r"10 steps were skipped \(epoch 3, step 10\)"):
        fit(fcr, max_epochs=30, on_nonfinite="skip")


def test_limits_by_hand():
    limit, few = faults.SkipLimit(1000), faults.SkipLimit(20)
    at = [torch.tensor(float(n)) for n in range(60)]
    assert not limit.reached(at[9], at[49])
    assert limit.reached(at[10], at[10])
    assert limit.reached(at[1], at[50])
    assert few.reached(at[1], at[10])
    assert not few.reached(at[9], at[9])


def test_the_genes_at_fault_are_told(adata):
    gene = 7
    cell = int(tiny_fcr(adata).cells.counts[:, gene].argmax())
    fcr = tiny_fcr(adata, penalties={"own": (Explodes(cell, [gene]), 1.0)})
    with pytest.raises(NonFiniteError, match=r"site own, cells \['cell\d+'\], genes \['g7'\]"):
        fit(fcr, max_epochs=3)


@pytest.mark.parametrize("bad", [[], [0], [3], [5, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_genes_are_found_by_halves(bad):
    def objective(batch):
        total = batch.counts[:, bad].sum() if bad else torch.zeros(())
        return Terms(torch.where(total > 0, torch.nan, 1.0), {}, {})

    cell = labelled([0], [0]).replace(counts=torch.ones(1, 7))
    found = faults.not_finite_genes(objective, cell)
    assert found == bad[: faults.NAMED]


def test_no_gene_is_blamed_for_what_no_gene_did():
    cell = labelled([0], [0]).replace(counts=torch.ones(1, 7))
    nan = Terms(torch.tensor(torch.nan), {}, {})
    assert faults.not_finite_genes(lambda batch: nan, cell) == []


def test_a_critic_that_is_not_finite_is_a_step_that_is_not_finite(adata):
    fcr = tiny_fcr(adata, penalties={"own": (ExplodingCritic(), 1.0)})
    with pytest.raises(NonFiniteError, match="epoch 1, step 3"):
        fit(fcr)
    assert all(torch.isfinite(v).all() for v in weights(fcr).values())
    fcr = tiny_fcr(adata, penalties={"own": (ExplodingCritic(), 1.0)})
    history = fit(fcr, max_epochs=2, on_nonfinite="skip")
    assert history["skipped"].tolist() == [2, 4]
    assert all(torch.isfinite(v).all() for v in weights(fcr).values())


def noting(adata, **options):
    from pyro_fcr.infer import Plan

    return Trainer(tiny_fcr(adata)._objective, Plan(1000), **options)


def test_an_accelerator_notes_bad_steps_without_being_asked(adata):
    good, bad = torch.tensor(True), torch.tensor(False)
    trainer = noting(adata, on_nonfinite="skip")
    record = trainer._note(bad, {"loss": torch.tensor(torch.nan)})
    assert record == {"loss": 0, "skipped": 1}
    assert trainer.failed == 1, "the optimisers pass over this step"
    assert trainer._note(good, {"loss": torch.tensor(2.0)}) == {"loss": 2, "skipped": 0}
    assert trainer.failed == 0, "and over no other"
    for _ in range(9):
        trainer._note(bad, {})
    trainer._ask()
    trainer._note(bad, {})
    # What comes later does not hide that there were ten in a row.
    trainer._note(good, {})
    with pytest.raises(NonFiniteError, match="and 11 steps were skipped"):
        trainer._ask()

    trainer = noting(adata)
    trainer._note(bad, {})
    trainer._note(good, {})
    assert trainer.failed == 1, "from a bad step on all are passed over"
    with pytest.raises(NonFiniteError, match=r"not finite \(epoch 1, up to step 0\)"):
        trainer._ask()


def test_gradient_norms_are_in_the_history(adata):
    history = fit(tiny_fcr(adata))
    assert (history["gradient_norm"] > 0).all()
    assert (history["gradient_norm.max"] >= history["gradient_norm"]).all()


def test_an_unknown_wish_is_refused(adata):
    with pytest.raises(FitError, match=r"on_nonfinite=.*'raise' or 'skip'.*'ignore'"):
        fit(tiny_fcr(adata), on_nonfinite="ignore")


# ---- memory ----------------------------------------------------------------------------------


def fails_at(monkeypatch, step, error):
    """Let a run's step raise once its forward pass is done."""
    advance = Trainer._advance

    def failing(self, batch, values):
        if self.step_count == step:
            raise error() if isinstance(error, type) else error
        return advance(self, batch, values)

    monkeypatch.setattr(Trainer, "_advance", failing)


def test_memory_errors_are_known_by_what_they_say():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert faults.is_out_of_memory(caught.value)
    assert faults.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert faults.is_out_of_memory(MemoryError())
    assert not faults.is_out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError]
)
def test_out_of_memory_offers_a_smaller_batch(adata, monkeypatch, tmp_path, error):
    fcr, path = tiny_fcr(adata), tmp_path / "run"
    fails_at(monkeypatch, 6, error)
    with pytest.raises(FitError, match=r"^out of memory \(epoch 2, step 7\): ") as caught:
        fit(fcr, checkpoint=path)
    said = str(caught.value)
    assert "54 cells" in said
    assert "batch_size=27 or 'auto'" in said
    assert "the weights after step 6, the last good one, are kept" in said
    assert f"resume=True goes on from {path}" in said
    assert "\n" not in said
    assert caught.value.__context__ is None, "what the step held is let go"
    assert len(fcr.history) == 1
    assert fcr.latents()["z_x"].notna().all().all()


def test_before_the_first_epoch_ends_the_model_stays_as_it_was(adata, monkeypatch):
    fcr = tiny_fcr(adata)
    fit(fcr, seed=3)
    before = weights(fcr)
    fails_at(monkeypatch, 2, MemoryError)
    with pytest.raises(FitError, match="no epoch was finished, and the model stays as it was"):
        fit(fcr, seed=4)
    assert same(before, weights(fcr))


def limited(monkeypatch, most):
    from pyro_fcr.infer import Objective

    forward = Objective.forward

    def within(self, batch, **options):
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch, **options)

    monkeypatch.setattr(Objective, "forward", within)


def test_a_batch_size_that_fits_is_found(adata, monkeypatch):
    limited(monkeypatch, 40)
    found, asked = tiny_fcr(adata), tiny_fcr(adata)
    fit(found, batch_size="auto")
    assert found.settings["batch_size"] == 32
    fit(asked, batch_size=32)
    assert same(weights(found), weights(asked)), "trying sizes leaves no trace"


def test_where_all_fits_the_size_is_the_usual_one(adata):
    fcr = tiny_fcr(adata)
    fit(fcr, batch_size="auto")
    assert fcr.settings["batch_size"] == 512


def test_not_one_cell_fits(adata, monkeypatch):
    fcr = tiny_fcr(adata)
    limited(monkeypatch, 0)
    with pytest.raises(FitError, match=r"out of memory \(fit\(batch_size='auto'\)\)"):
        fit(fcr, batch_size="auto")


def test_other_errors_are_nobodys_memory(adata, monkeypatch):
    fails_at(monkeypatch, 1, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        fit(tiny_fcr(adata))
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        faults.fitting_batch_size(Broken(), lambda size: labelled([0] * size, [0] * size))


class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch):
        raise RuntimeError("shapes do not match")


# ---- devices, disks, people ------------------------------------------------------------------


def test_a_lost_device_leaves_the_checkpoint(adata, monkeypatch, tmp_path):
    path = tmp_path / "run"
    whole, broken, resumed = (tiny_fcr(adata) for _ in range(3))
    fit(whole, max_epochs=4)
    with monkeypatch.context() as patched:
        fails_at(patched, 9, RuntimeError("CUDA error: an illegal memory access\nmore lines"))
        with pytest.raises(FitError, match=r"^the device was lost \(epoch 3, step 10\)") as caught:
            fit(broken, max_epochs=4, checkpoint=path)
    assert "the weights in memory are gone, and resume=True goes on from" in str(caught.value)
    assert "\n" not in str(caught.value)
    fit(resumed, max_epochs=4, checkpoint=path, resume=True)
    assert same(weights(resumed), weights(whole))


def test_a_full_disk_keeps_the_earlier_checkpoint_and_the_model(adata, monkeypatch, tmp_path):
    path = tmp_path / "run"
    whole, broken, resumed = (tiny_fcr(adata) for _ in range(3))
    fit(whole, max_epochs=4)
    write, times = Path.write_bytes, []

    def filling(self, content):
        times.append(self)
        if len(times) == 3:
            write(self, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", filling)
        with pytest.raises(WriteError, match=r"cannot write .*No space left on device") as caught:
            fit(broken, max_epochs=4, checkpoint=path)
    assert "the weights after step 12, the last good one, are kept" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert len(broken.history) == 3
    assert broken.latents()["z_x"].notna().all().all()
    history = fit(resumed, max_epochs=4, checkpoint=path, resume=True)
    assert same(weights(resumed), weights(whole))
    assert len(history) == 4


@pytest.fixture
def interruptible():
    """Ctrl-C as an interactive Python has it; a background shell hands on that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_at(monkeypatch, step, times=1):
    """Press Ctrl-C in the middle of a step."""
    done = []
    advance = Trainer._advance

    def pressing(self, batch, values):
        if self.step_count == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        record = advance(self, batch, values)
        done.append(self.step_count)
        return record

    monkeypatch.setattr(Trainer, "_advance", pressing)
    return done


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_step_and_leaves_a_model_that_answers(adata, monkeypatch):
    fcr = tiny_fcr(adata)
    done = interrupted_at(monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after step 10 of 400; the weights"):
        fit(fcr, max_epochs=100)
    assert done[-1] == 9, "the step was finished"
    assert len(fcr.history) == 2
    assert fcr.latents()["z_x"].notna().all().all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait(adata, monkeypatch):
    done = interrupted_at(monkeypatch, 9, times=2)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 9 of 400"):
        fit(tiny_fcr(adata), max_epochs=100)
    assert done[-1] == 8


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_the_best_weights(adata, monkeypatch):
    monkeypatch.setitem(Settled.__init__.__kwdefaults__, "tolerance", 10.0)
    split = pf.splits.random(adata, test=0.2, valid=0.2, seed=0)
    fcr, offered = tiny_fcr(adata), []
    from pyro_fcr.infer.trainer import BestWeights

    offer = BestWeights.offer

    def watched(self, loss, module):
        before = self.loss
        offer(self, loss, module)
        if self.loss < before:
            offered.append(weights(fcr))
            # From here on all is worse.
            self.loss = -torch.inf

    monkeypatch.setattr(BestWeights, "offer", watched)
    interrupted_at(monkeypatch, 30)
    with pytest.raises(KeyboardInterrupt, match="the best weights so far are kept"):
        fit(fcr, max_epochs=100, split=split, early_stopping=True, align_at=2, validate_every=1)
    assert len(offered) == 1
    kept = weights(fcr)
    moved = [k for k in kept if not torch.equal(kept[k], offered[0][k])]
    # What training leaves unfinished in tables of conditions is completed afterwards.
    assert all(k.startswith(("model.model.priors", "model.model.decoder")) for k in moved)


def test_handlers_of_ones_own_stay(adata):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with faults.deferred_interrupt() as asked:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


PARTNER = """
import sys
sys.path[:0] = [{tests!r}]
import torch
from tiny import fit, tiny_adata, tiny_fcr
torch.set_num_threads(1)
fit(tiny_fcr(tiny_adata()), max_epochs=2000, checkpoint={path!r})
"""


def _free_port() -> int:
    # Another run of these tests on the machine may hold any number that is written down.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.ddp
@pytest.mark.slow
def test_a_killed_process_ends_the_other_in_one_line(tmp_path):
    path = tmp_path / "run"
    code = PARTNER.format(tests=str(Path(__file__).parents[1]), path=str(path))
    shared = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
        "PYTHONPATH": str(Path(pf.__file__).parents[1]), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=shared | {"RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert [process.poll() for process in both] == [None, None]
        both[1].kill()
        _, said = both[0].communicate(timeout=120)
    finally:
        for process in both:
            process.kill()
            process.wait()
            process.stderr.close()
    assert both[0].returncode == 1
    line = said.strip().splitlines()[-1]
    assert "pyro_fcr.errors.FitError: another process of the run was lost" in line
    assert f"are kept, and resume=True goes on from {path}" in line
