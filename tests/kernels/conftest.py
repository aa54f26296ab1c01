import os

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=os.environ.get("TRITON_INTERPRET") == "1")
def quiet():
    """In the processes that interpret kernels, numpy computes masked places too, and warns of them."""
    with np.errstate(all="ignore"):
        yield
