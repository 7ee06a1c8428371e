"""Where a matrix of counts is not zero: found once, read by whoever wants it.

Counts are mostly zeros. The density and the encoders' first layers evaluate the others alone;
cells held as compressed rows know which they are, and a minibatch hands that on with its matrix.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NonZeros", "densify", "nonzeros"]

MEMO = "_pyro_fcr_nonzeros"
"""Attribute of a matrix under which its non-zeros are kept, with the matrix's version."""


class NonZeros:
    """The C values of a matrix (B, G) on the CPU that are not zero, row by row.

    Parameters
    ----------
    offsets
        Shape (B + 1,), int32: where each row begins among the values, and where the last ends.
    column
        Shape (C,), int32: each value's column.
    value
        Shape (C,).
    n_columns
        The columns, G.
    """

    def __init__(self, offsets: Tensor, column: Tensor, value: Tensor, n_columns: int) -> None:
        self.offsets, self.column, self.value = offsets, column, value
        self.n_columns = n_columns

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole matrix."""
        return len(self.offsets) - 1, self.n_columns

    @property
    def density(self) -> float:
        """Share of values that are not zero."""
        return len(self.value) / max(1, self.shape[0] * self.n_columns)

    @cached_property
    def row(self) -> Tensor:
        """Shape (C,), int32: each value's row."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.value)).int()

    @cached_property
    def place(self) -> Tensor:
        """Shape (C,), int64: each value's position among all, row by row."""
        start = torch.arange(self.shape[0]) * self.n_columns
        start = torch.repeat_interleave(start, self.offsets.diff(), output_size=len(self.value))
        return start.add_(self.column)

    def row_sums(self, value: Tensor) -> Tensor:
        """Return the sum over each row of other values at these places; (C,) to (B,)."""
        ones = value.new_ones(self.n_columns, 1)
        return F.embedding_bag(
            self.column, ones, self.offsets, mode="sum", per_sample_weights=value,
            include_last_offset=True,
        ).view(-1)  # fmt: skip

    def with_values(self, value: Tensor) -> NonZeros:
        """Return the same places with other values; shape (C,)."""
        return NonZeros(self.offsets, self.column, value, self.n_columns)

    def transposed(self) -> NonZeros:
        """Return the non-zeros column by column: those of the transposed matrix."""
        value, column, offsets = (x.detach().numpy() for x in
                                  (self.value, self.column, self.offsets))  # fmt: skip
        turned = sparse.csr_matrix((value, column, offsets), shape=self.shape).tocsc()
        return _of_arrays(turned.indptr, turned.indices, turned.data, self.shape[0])


def nonzeros(matrix: Tensor) -> NonZeros:
    """Return a matrix's non-zeros; found once for as long as nobody writes into it.

    Parameters
    ----------
    matrix
        Shape (B, G), on the CPU.
    """
    # Such tensors have no version, by which a change could be told.
    if matrix.is_inference():
        return _search(matrix)
    version, found = getattr(matrix, MEMO, (None, None))
    if found is None or version != matrix._version:
        found = _search(matrix)
        setattr(matrix, MEMO, (matrix._version, found))
    return found


def densify(rows: Any) -> Tensor:
    """Return compressed rows as a matrix that knows its non-zeros.

    Parameters
    ----------
    rows
        A ``scipy.sparse.csr_matrix``, shape (B, G), float32.
    """
    matrix = torch.from_numpy(rows.toarray())
    if rows.has_canonical_format and rows.data.all():
        offsets, column = (p.astype(np.int32, copy=False) for p in (rows.indptr, rows.indices))
        found = _of_arrays(offsets, column, rows.data, rows.shape[1])
        setattr(matrix, MEMO, (matrix._version, found))
    return matrix


def _of_arrays(offsets: Any, column: Any, value: Any, n_columns: int) -> NonZeros:
    offsets, column, value = (torch.from_numpy(part) for part in (offsets, column, value))
    return NonZeros(offsets, column, value, n_columns)


def _search(matrix: Tensor) -> NonZeros:
    row, column = matrix.bool().nonzero(as_tuple=True)
    value = matrix.reshape(-1).index_select(0, row * matrix.shape[1] + column)
    ends = torch.bincount(row, minlength=matrix.shape[0]).cumsum(0).int()
    offsets = torch.cat([ends.new_zeros(1), ends])
    return NonZeros(offsets, column.int(), value, matrix.shape[1])
