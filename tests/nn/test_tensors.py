"""Files of tensors."""

import pytest
import torch

from pyro_fcr.errors import LoadError
from pyro_fcr.nn import read_tensors, write_tensors


def test_round_trip_of_tensors_and_header(tmp_path):
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared.view(2, 3).T, "n": torch.tensor(3), "e": torch.empty(0, 2)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"epoch": 3, "rows": [{"a": 0.1}]})
    back, meta = read_tensors(tmp_path / "x.safetensors")
    assert meta == {"epoch": 3, "rows": [{"a": 0.1}]}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)}, {})
    with pytest.raises(TypeError):
        write_tensors(path, {"a": torch.zeros(2)}, {"bad": object()})
    assert torch.equal(read_tensors(path)[0]["a"], torch.ones(2))


@pytest.mark.parametrize(
    "content", [None, b"", b"not a file of tensors at all", b"\x80\x04pickle"]
)
def test_missing_or_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match=r"cannot read weights .*x\.safetensors"):
        read_tensors(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LoadError, match="cannot read weights"):
        read_tensors(path)


def test_another_programs_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(LoadError, match="KeyError"):
        read_tensors(tmp_path / "x.safetensors")
