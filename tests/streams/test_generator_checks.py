"""What a generator takes as a whole number and as a number."""

import math

import numpy as np
import pytest

from workbench_datasets._checks import between, is_number, whole

NEITHER = [True, np.True_, "2", None, [2], math.inf, math.nan]


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_whole_numbers_come_back_as_plain_ones(value):
    assert whole("n", value, 3, 3) == 3
    assert type(whole("n", value)) is int


@pytest.mark.parametrize("value", [*NEITHER, 2.0, np.float64(2), 0], ids=repr)
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ValueError, match=r"^n=.*: expected a whole number from 1 to 4$"):
        whole("n", value, 1, 4)
    with pytest.raises(ValueError, match=r"^n=.*: expected a whole number of at least 1$"):
        whole("n", value)


def test_the_ends_of_a_range_belong_to_it():
    assert (whole("n", 1, 1, 4), whole("n", 4, 1, 4)) == (1, 4)
    with pytest.raises(ValueError, match="n=5: expected a whole number from 1 to 4"):
        whole("n", 5, 1, 4)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), 0, 1, np.int8(1)], ids=repr)
def test_numbers_come_back_as_floats(value):
    assert is_number(value)
    assert between("share", value) == value
    assert type(between("share", value)) is float


@pytest.mark.parametrize("value", [*NEITHER, -0.1, 1.1, 10**400], ids=lambda value: str(value)[:9])
def test_what_is_no_number_in_the_range_is_named(value):
    with pytest.raises(ValueError, match=r"^share=.*: expected a number from 0 to 1$"):
        between("share", value)
