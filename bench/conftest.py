"""Benches under pytest-benchmark: one table of all rows at the end, and one JSON line last."""

from pathlib import Path

import pytest
import torch

import measure
import reporting
import run
from mingcore.testing import machine
from mingcore.testing.roofline import ceilings

_ROWS: list[measure.Row] = []


def pytest_addoption(parser):
    group = parser.getgroup("mingcore")
    group.addoption("--warm-cache", action="store_true", help="one input set: the cache is warm")
    group.addoption("--quick", action="store_true", help="small and few: does it all run")
    group.addoption("--size", choices=["mid", "real", "odd"], default="mid", help="which cases")
    group.addoption("--budget", type=float, default=1.0, help="seconds per row")
    group.addoption("--threads", type=int, help="of the CPU; fewer than cores on a busy machine")
    group.addoption("--keep", metavar="FOLDER", help="where results go; none: print only")
    group.addoption("--add", action="store_true", help="to what is kept there")


def pytest_configure(config):
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


@pytest.fixture
def rows():
    """The list that the table is made of."""
    return _ROWS


def pytest_benchmark_update_machine_info(config, machine_info):
    # without what is other in every run: --benchmark-compare would take it for another machine.
    # pytest-benchmark keeps commit and time itself
    here = machine.describe()
    machine_info["mingcore"] = {k: v for k, v in here.items() if k not in ("commit", "time_utc")}
    machine_info.pop("cpu", None)  # its clock of that moment


def pytest_unconfigure(config):
    if not _ROWS:
        return
    devices = sorted({row.device for row in _ROWS})
    content = reporting.result(
        "ops",
        size=config.getoption("--size"),
        ceilings={d: ceilings(d, quick=config.getoption("--quick")).as_dict() for d in devices},
        rows=[row.as_dict() for row in _ROWS],
    )
    print()
    print(reporting.table(measure.HEAD, [row.cells() for row in _ROWS]))
    for device, ceiling in content["ceilings"].items():
        print(
            f"100 % on {device}: read {ceiling['read_gbs']:.1f} GB/s "
            f"(copy {ceiling['copy_gbs']:.1f} GB/s, {ceiling['threads']} threads)"
        )
    if config.getoption("--keep"):
        name, folder = f"ops-{content['size']}", Path(config.getoption("--keep"))
        if config.getoption("--add"):
            content = reporting.joined(reporting.kept(name, folder), content, run.KEYS["ops"])
        reporting.keep(name, content, folder)
    reporting.last_line(content)
