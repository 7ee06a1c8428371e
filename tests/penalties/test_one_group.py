"""A label of one group: the system's own terms fall away, one that was asked for does not."""

import logging

import pytest
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.errors import DesignError, DesignWarning, NothingToTell, SlotError
from pyro_fcr.penalties import ConditionalHSIC, CovariateHead, PermutationDiscriminator

NOTHING = r"'{}' has nothing to tell.*a label with two groups or more, got 1; leave the penalty"


def one_type():
    adata = tiny_adata(per_condition=12)
    adata = adata[adata.obs["type"].eq("u")].copy()
    adata.obs["lane"] = "l0"
    return adata


def test_a_data_set_of_one_covariate_group_is_fitted_without_the_term(caplog):
    with caplog.at_level(logging.INFO, "pyro_fcr"), pytest.warns(DesignWarning) as told:
        fcr = tiny_fcr(one_type(), sizes={"z_x": 2, "z_t": 2, "z_tx": 1})
    assert [str(w.message).split(" (")[0] for w in told if w.category is DesignWarning] == [
        "covariate 'type' is constant",
        "1 interaction dimensions are more than the design can identify",
    ]
    assert "z_t_vs_type is left out: 'type' has nothing to tell" in caplog.text
    history = fit(fcr)
    assert "z_t_vs_type" not in history
    assert history["z_x_vs_treatment"].notna().all()


@pytest.mark.parametrize(
    ("penalties", "label"),
    [
        ({"covariate_head": 1.0}, "covariates"),
        ({"z_t_vs_type": 1.0}, "type"),
        ({"own": (ConditionalHSIC("z_t", "batch", given="treatment"), 1.0)}, "batch"),
        ({"own": (PermutationDiscriminator("z_t", "type", given="treatment"), 1.0)}, "type"),
        ({"own": (CovariateHead("z_x", ["type", "batch"]), 1.0)}, "type | batch"),
    ],
)
@pytest.mark.filterwarnings("ignore::pyro_fcr.errors.DesignWarning")
def test_what_was_asked_for_is_refused(penalties, label):
    with pytest.raises(NothingToTell, match=NOTHING.format(label.replace("|", r"\|"))):
        tiny_fcr(one_type(), sizes={"z_tx": 1}, penalties=penalties)


def test_a_head_of_treatments_needs_treatments():
    adata = tiny_adata(per_condition=12)
    schema = pf.Schema(covariates="type", batch="lane")
    head = {"own": (pf.penalties.TreatmentHead(("z_inv",)), 1.0)}
    with pytest.raises(SlotError, match=NOTHING.format("treatment")):
        pf.InVAE(adata, schema, sizes={"z_inv": 2, "z_spur": 2}, penalties=head)


def test_a_constant_batch_is_told():
    with pytest.warns(DesignWarning) as told:
        invae = pf.InVAE(one_type(), tiny_schema(batch="lane"), spurious="lane", invariant="type")
    assert {str(w.message).split(" (")[0] for w in told if w.category is DesignWarning} == {
        "covariate 'type' is constant",
        "batch 'lane' is constant",
    }
    assert not invae.heads
    fit(invae, max_epochs=1)
    with pytest.raises(DesignError, match="no one classifier to ask"):
        invae.predict_labels()
