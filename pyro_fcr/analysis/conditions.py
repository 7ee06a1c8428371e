"""The conditions of a design: a cell for each, and names for those of given cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_fcr.data import Cells
from pyro_fcr.errors import CategoryError, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyro_fcr.data import Design

__all__ = ["condition_at", "condition_cells", "condition_labels", "role_labels"]


def condition_cells(design: Design, *, repeats: int = 1) -> Cells:
    """Return an empty cell for every pair of treatment group and joint covariate.

    Parameters
    ----------
    design
        The experiment.
    repeats
        Cells per condition.

    Returns
    -------
    Cells
        Treatments vary slowest; counts are zero and libraries one, and continuous covariates at
        their mean.
    """
    levels = list(design.covariates.values())
    codes = np.asarray(
        [
            [names.index(v) for names, v in zip(levels, j, strict=True)]
            for j in design.covariate_levels
        ],
        dtype=np.int64,
    ).reshape(design.n_covariate_levels, design.n_covariates)
    n_t, n_x = design.n_treatment_levels, design.n_covariate_levels
    treatment = np.repeat(np.arange(n_t), n_x * repeats)
    covariate = np.tile(np.repeat(np.arange(n_x), repeats), n_t)
    n = len(treatment)
    return Cells(
        design=design,
        names=np.asarray([f"condition{i}" for i in range(n)], dtype=object),
        counts=np.zeros((n, design.n_genes), np.float32),
        library=np.ones(n, np.float32),
        treatment_rows=design.treatment_rows,
        treatment_row=treatment,
        treatment_id=treatment,
        covariates=codes[covariate],
        covariate_id=covariate,
        batch_id=np.zeros(n, np.int64),
        continuous=np.zeros((n, len(design.continuous)), np.float32),
    )


def condition_labels(cells: Cells) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Name each cell's treatment group and joint covariate.

    Parameters
    ----------
    cells
        N cells.

    Returns
    -------
    treatments, covariates
        Shape (N,) each. The label of an unknown group (code -1) is empty.
    """
    design = cells.design
    treatments = np.asarray([*design.treatment_levels, ""], dtype=object)
    covariates = np.asarray([*design.covariate_groups, ""], dtype=object)
    # A code of -1 reads the empty label at the end.
    return treatments[cells.treatment_id], covariates[cells.covariate_id]


def condition_at(
    treatment: str,
    covariate: str,
    treatments: Sequence[str],
    covariates: Sequence[str],
    *,
    where: str,
) -> tuple[int, int]:
    """Return where a condition stands along the axes of a result.

    Parameters
    ----------
    treatment, covariate
        Its names.
    treatments, covariates
        All names, in the axes' order.
    where
        What the user calls the result, for the message.

    Raises
    ------
    CategoryError
        If a name is not among those.
    """
    for kind, name, names in (
        ("treatment", treatment, treatments),
        ("covariate group", covariate, covariates),
    ):
        if name not in names:
            raise CategoryError(
                sentence(
                    f"no {kind} is called '{name}'",
                    where=where,
                    expected=f"one of {list(names)[:12]}",
                    got=repr(name),
                    hint="its treatments and covariates list the names",
                )
            )
    return treatments.index(treatment), covariates.index(covariate)


def role_labels(cells: Cells) -> dict[str, NDArray[np.object_]]:
    """Name each cell's group by what the schema tells of it.

    Parameters
    ----------
    cells
        N cells.

    Returns
    -------
    dict
        Under ``"treatment"``, ``"covariates"`` (jointly) and ``"batch"``, as far as the schema
        names them, labels of shape (N,); that of an unknown group is empty.
    """
    design, schema = cells.design, cells.design.schema
    treatment, covariates = condition_labels(cells)
    batch = np.asarray([*design.batches, ""], dtype=object)[cells.batch_id]
    told = {
        "treatment": (schema.treatment, treatment),
        "covariates": (design.covariates, covariates),
        "batch": (schema.batch not in (None, *design.covariates), batch),
    }
    return {role: labels for role, (there, labels) in told.items() if there}
