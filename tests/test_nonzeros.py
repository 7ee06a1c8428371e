"""The non-zeros of a matrix: found, handed on, kept as long as they are true."""

import numpy as np
import torch
from scipy import sparse

from pyro_fcr.nonzeros import densify, nonzeros

MATRIX = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 5.0]])


def told(found):
    return (found.offsets.tolist(), found.column.tolist(), found.value.tolist(),
            found.row.tolist(), found.place.tolist())  # fmt: skip


EXPECTED = ([0, 1, 1, 3], [1, 0, 2], [2.0, 1.0, 5.0], [0, 2, 2], [1, 6, 8])


def test_found_row_by_row():
    assert told(nonzeros(MATRIX.clone())) == EXPECTED
    assert nonzeros(MATRIX.clone()).density == 3 / 9


def test_compressed_rows_hand_theirs_on_without_a_search(monkeypatch):
    matrix = densify(sparse.csr_matrix(MATRIX.numpy()))
    torch.testing.assert_close(matrix, MATRIX)
    monkeypatch.setattr("pyro_fcr.nonzeros._search", None)
    assert told(nonzeros(matrix)) == EXPECTED


def test_explicit_zeros_and_repeated_entries_are_not_taken_for_counts():
    place = (np.array([0, 2, 2, 2]), np.array([1, 0, 2, 2]))
    repeated = sparse.coo_matrix((np.float32([2, 1, 4, 1]), place), shape=(3, 3))
    rows = sparse.csr_matrix(
        (repeated.data, repeated.col.astype(np.int32), np.int32([0, 1, 1, 4])), shape=(3, 3)
    )
    assert not rows.has_canonical_format
    assert told(nonzeros(densify(rows))) == EXPECTED
    zero = sparse.csr_matrix(MATRIX.numpy())
    zero.data[0] = 0
    assert nonzeros(densify(zero)).column.tolist() == [0, 2]


def test_kept_until_the_matrix_is_written_into():
    matrix = MATRIX.clone()
    assert nonzeros(matrix) is nonzeros(matrix)
    matrix[1, 1] = 7
    assert nonzeros(matrix).column.tolist() == [1, 1, 0, 2]


def test_transposed():
    turned = nonzeros(MATRIX.clone()).transposed()
    assert told(turned) == told(nonzeros(MATRIX.T.contiguous()))
    assert turned.shape == (3, 3)


def test_inference_tensors_are_searched_every_time():
    with torch.inference_mode():
        matrix = MATRIX.clone()
        assert told(nonzeros(matrix)) == EXPECTED
        matrix[1, 1] = 7
        assert nonzeros(matrix).column.tolist() == [1, 1, 0, 2]


def test_row_sums_of_other_values():
    # Rows of one, none and two values.
    matrix = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    assert nonzeros(matrix).row_sums(torch.tensor([3.0, 4.0, 7.0])).tolist() == [3.0, 0.0, 11.0]
