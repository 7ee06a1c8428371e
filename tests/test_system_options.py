"""A system's own options: handed to its declaration, refused by name, saved and loaded."""

import pytest
from tiny import fit, tiny_adata, tiny_schema

import pyro_fcr as pf
from pyro_fcr.assembly import Declaration
from pyro_fcr.errors import FitError, LoadError
from pyro_fcr.estimator import Estimator
from pyro_fcr.priors import Standard


class Plain(Estimator):
    """One block, whose size and prior are options."""

    @classmethod
    def declare(cls, design, sizes, *, size=2, prior=None):
        block = pf.Block("z", sizes.get("z", size))
        return Declaration((block,), {"z": prior or Standard()}, batch_in_decoder=False)


class Wide(pf.priors.Standard):
    """A part of the user's own."""


@pytest.fixture(scope="module")
def adata():
    return tiny_adata(per_condition=6)


def test_options_reach_the_declaration(adata):
    assert [b.size for b in Plain(adata, tiny_schema(), size=3).declaration.blocks] == [3]


def test_a_misspelt_option_is_named(adata):
    with pytest.raises(FitError, match=r"Plain has no option 'sise'.*size, prior.*'size'"):
        Plain(adata, tiny_schema(), sise=3)
    with pytest.raises(FitError, match=r"FCR has no option 'likelyhood'.*'likelihood'"):
        pf.FCR(adata, tiny_schema(), likelyhood="nb")


def test_the_system_may_keep_the_batch_from_the_decoder(adata):
    schema = tiny_schema(batch="lane")
    assert not Plain(adata, schema).model.decoder.reads
    assert Plain(adata, schema, batch_in_decoder=True).model.decoder.reads == {"batch"}
    assert pf.FCR(adata, schema).model.decoder.reads == {"batch"}


def test_options_are_saved(adata, tmp_path):
    made = Plain(adata, tiny_schema(), size=3, prior=pf.priors.Gaussian(learn_scale=False))
    fit(made, max_epochs=1)
    again = pf.load(made.save(tmp_path / "a"), system=Plain)
    assert again.declaration.blocks[0].size == 3
    assert again.declaration.priors["z"].learn_scale is False
    assert again.latents(adata)["z"].equals(made.latents(adata)["z"])


def test_a_part_of_the_users_own_must_be_given_again(adata, tmp_path):
    made = Plain(adata, tiny_schema(), prior=Wide())
    fit(made, max_epochs=1)
    folder = made.save(tmp_path / "a")
    with pytest.raises(LoadError, match=r"a Wide of the user's own.*options=\{'prior': \.\.\.\}"):
        pf.load(folder, system=Plain)
    again = pf.load(folder, system=Plain, options={"prior": Wide()})
    assert again.latents(adata)["z"].equals(made.latents(adata)["z"])
