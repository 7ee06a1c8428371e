"""A model on disk: the same model again, or a sentence that says why not."""

import errno
import json
import shutil

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from pyro.nn import PyroSample
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.errors import LoadError, NotFittedError, WriteError

PENALTIES = {"z_x_vs_z_tx": 0.5, "covariate_head": 0.1}


class Hill(pf.Prior):
    def __init__(self, size):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose.log1p()[:, None], 1.0).to_event(1)


@pytest.fixture(scope="module")
def adata():
    return tiny_adata(per_condition=10)


@pytest.fixture(scope="module")
def saved(adata, tmp_path_factory):
    fcr = tiny_fcr(adata, penalties=PENALTIES)
    fit(fcr, max_epochs=3, split=pf.splits.random(adata))
    return fcr, fcr.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "copy")


def check_equal(fcr, again, adata):
    for name, frame in fcr.latents(adata).items():
        pd.testing.assert_frame_equal(again.latents(adata)[name], frame, check_exact=True)
    a, b = fcr._objective.state_dict(), again._objective.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    do = {"treatment": "A"}
    x = fcr.counterfactual(adata[:9], do=do, draws=3)
    y = again.counterfactual(adata[:9], do=do, draws=3)
    np.testing.assert_array_equal(x.X, y.X)
    pd.testing.assert_frame_equal(x.obs, y.obs)


def test_round_trip_bit_for_bit(adata, saved):
    fcr, folder = saved
    again = pf.load(folder)
    assert type(again) is pf.FCR
    check_equal(fcr, again, adata)
    assert again.design.to_dict() == fcr.design.to_dict()
    assert again.settings == fcr.settings
    pd.testing.assert_frame_equal(again.history, fcr.history, check_exact=True)
    assert {p.name for p in folder.iterdir()} == {
        "model.json", "weights.safetensors", "history.csv"
    }  # fmt: skip


def test_paths_may_be_text(adata, saved, tmp_path):
    fcr, _ = saved
    made = fcr.save(str(tmp_path / "a" / "b"))
    check_equal(fcr, pf.load(str(made)), adata)
    # Saving over a model replaces it.
    fcr.save(made)
    check_equal(fcr, pf.load(made), adata)


def test_a_second_round_trip_changes_nothing(saved, tmp_path):
    _, folder = saved
    again = pf.load(folder).save(tmp_path / "again")
    for name in ("model.json", "weights.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "zinb"},
        {"likelihood": pf.likelihoods.Poisson()},
        {"guide": pf.guides.Amortised(labels=True, width=8, depth=3)},
        {"priors": {"z_x": pf.priors.Standard(), "z_tx": pf.priors.Gaussian(learn_scale=False)}},
        {"penalties": {"treatment_head": 1.0,
                       "own": (pf.penalties.PermutationDiscriminator("z_x", "treatment",
                                                                     given="covariates"), 2.0)}},
        {"schema": tiny_schema(batch="lane")},
    ],
    ids=["zinb", "poisson", "labels", "priors", "penalties", "batch"],
)  # fmt: skip
def test_every_builtin_part_comes_back(adata, options, tmp_path):
    fcr = tiny_fcr(adata, **options)
    fit(fcr, max_epochs=1)
    check_equal(fcr, pf.load(fcr.save(tmp_path / "m")), adata)


def test_a_prior_of_ones_own_must_be_given_again(adata, tmp_path):
    guide = pf.guides.Composed(globals=AutoLowRankMultivariateNormal)
    fcr = tiny_fcr(adata, priors={"z_t": Hill(2)}, guide=guide)
    fit(fcr, max_epochs=2)
    folder = fcr.save(tmp_path / "hill")
    with pytest.raises(LoadError, match=r"saved with a Hill of the user's own.*priors=\{'z_t'"):
        pf.load(folder)
    check_equal(fcr, pf.load(folder, priors={"z_t": Hill(2)}), adata)
    with pytest.raises((LoadError, pf.errors.SlotError) if hasattr(pf, "errors") else ValueError):
        pf.load(folder, priors={"z_t": Hill(3)})


def test_a_loaded_model_holds_no_cells(saved, adata):
    again = pf.load(saved[1])
    with pytest.raises(NotFittedError, match="a loaded model holds no cells"):
        again.latents()
    assert again.latents(adata)["z_x"].shape == (90, 3)


def test_an_untrained_model_is_not_saved(adata, tmp_path):
    with pytest.raises(NotFittedError, match="not trained"):
        tiny_fcr(adata).save(tmp_path / "m")
    assert not (tmp_path / "m" / "weights.safetensors").exists()


def test_no_pickle_anywhere(saved):
    _, folder = saved
    for path in folder.iterdir():
        assert path.suffix in (".json", ".safetensors", ".csv")
        assert not path.read_bytes().startswith((b"\x80", b"PK"))
    json.loads((folder / "model.json").read_text())


def test_what_the_json_says(saved):
    content = json.loads((saved[1] / "model.json").read_text())
    assert content["format"] == 2
    assert content["system"] == "FCR"
    assert {"torch", "pyro-ppl", "anndata", "numpy"} <= set(content["versions"])
    assert content["design"]["schema"]["treatment"] == "drug"


def test_a_missing_folder(tmp_path):
    with pytest.raises(LoadError, match=r"cannot read the model .*model\.json"):
        pf.load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors", "history.csv"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_damaged_files(folder, name, damage):
    path = folder / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "cut": whole[: len(whole) // 2], "other": b"\x00[1,"}[damage]
        )
    with pytest.raises(LoadError):
        pf.load(folder)


def edited(folder, change):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(pf.io.seal(content)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(format=99), r"saved by a newer version.*layout 99"),
        (lambda c: c.update(format=1), r"saved by an older version.*layout 1.*fit again"),
        (lambda c: c.update(system="Mine"), r"the system 'Mine'.*system="),
        (lambda c: c.pop("design"), "KeyError"),
        (lambda c: c["design"].pop("genes"), "."),
        (lambda c: c["design"].update(genes=c["design"]["genes"][:-1]), "."),
        (lambda c: c.update(hidden=[7]), "do not fit together"),
        (lambda c: c.update(likelihood={"part": "likelihoods.resolve"}), "does not have"),
        (lambda c: c.update(guide={"part": "os.system", "arguments": {"command": "true"}}),
         "does not have"),
        (lambda c: c.update(guide={"autoguide": "__builtins__"}), "does not have"),
        (lambda c: c.update(sizes={"z_x": 4, "z_t": 2, "z_tx": 2}), "do not fit together"),
        (lambda c: c.update(priors={"z_x": {"part": "priors.Gaussian",
                                            "arguments": {"nonsense": 1}}}), "TypeError"),
    ],
)  # fmt: skip
def test_edited_descriptions(folder, change, match):
    edited(folder, change)
    with pytest.raises(LoadError, match=match):
        pf.load(folder)


def test_a_description_that_was_edited_is_refused(folder):
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"g3"', '"g4"'))
    with pytest.raises(LoadError, match=r"not what was saved .*takes sha256 out"):
        pf.load(folder)


def test_a_description_cannot_ask_for_more_than_the_weights(folder):
    edited(folder, lambda c: c.update(hidden=[10**9]))
    with pytest.raises(LoadError, match="sizes beyond the"):
        pf.load(folder)


def test_a_part_cannot_ask_for_more_than_the_weights(folder):
    edited(folder, lambda c: c["guide"]["arguments"].update(width=100_000))
    with pytest.raises(LoadError, match=r"a tensor of shape \(300000, 20\) in so small"):
        pf.load(folder)


def test_weights_of_another_model(folder, adata, tmp_path):
    other = tiny_fcr(adata, hidden=(8,))
    fit(other, max_epochs=1)
    shutil.copy(other.save(tmp_path / "o") / "weights.safetensors", folder)
    with pytest.raises(LoadError, match="is not the file that this model was saved with"):
        pf.load(folder)


def test_numpy_numbers_in_the_arguments(adata, tmp_path):
    fcr = tiny_fcr(adata, sizes={"z_x": np.int64(3), "z_t": 2, "z_tx": 2}, hidden=[np.int64(8)],
                   penalties={"covariate_head": np.float32(0.5)})  # fmt: skip
    fit(fcr, max_epochs=1, seed=np.int64(1))
    check_equal(fcr, pf.load(fcr.save(tmp_path / "m")), adata)


def test_weights_of_another_fit_of_the_same_model_are_refused(folder, adata, tmp_path):
    other = tiny_fcr(adata, penalties=PENALTIES)
    fit(other, max_epochs=1, seed=9)
    shutil.copy(other.save(tmp_path / "o") / "weights.safetensors", folder)
    with pytest.raises(LoadError, match=r"weights\.safetensors is not the file .* saved with"):
        pf.load(folder)


def test_a_save_that_breaks_off_leaves_the_earlier_model(folder, adata, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = tiny_fcr(adata)
    fit(other, max_epochs=1, seed=9)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(WriteError, match="No space left on device"):
        other.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
