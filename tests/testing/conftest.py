"""The models here are tiny: one thread is fastest, and steady on a busy machine."""

import pytest

from mingcore.testing.timing import threads


@pytest.fixture(autouse=True)
def one_thread():
    with threads(1):
        yield
