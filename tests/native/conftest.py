import pytest
import torch

from mingcore import _cpu


@pytest.fixture(params=_cpu.isas())
def isa(request):
    """Every instruction set that this build holds and this CPU runs, one after the other."""
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture(params=(1, 2))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
