"""What every test stands on: one thread, checks on, its own random state and param store."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pyro
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = os.environ.get("PYRO_FCR_TEST_DEVICE", "cpu")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where device-agnostic tests run: PYRO_FCR_TEST_DEVICE, by default the CPU."""
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def isolation() -> Iterator[None]:
    """Seed each test alike whatever ran before it, check distributions, and leave no trace."""
    torch.set_num_threads(1)
    devices = [torch.cuda.current_device()] if DEVICE.startswith("cuda") else []
    python_state = random.getstate()
    # Third-party code reads numpy's global state; the package itself may not.
    numpy_state = np.random.get_state()  # noqa: NPY002
    try:
        with (
            torch.random.fork_rng(devices=devices),
            pyro.get_param_store().scope(),
            pyro.validation_enabled(True),
        ):
            pyro.set_rng_seed(0)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
