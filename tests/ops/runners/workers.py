"""Every worker of a session, started when it is first asked for."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.ops.runners import emulated, triton
from tests.ops.runners.protocol import Worker


class Workers:
    """folder: where libraries, logs and compiled kernels go; shared: the same of all processes of
    the session."""

    def __init__(self, folder: Path, shared: Path):
        self._folder, self.shared = folder, shared
        self._found: dict[tuple, Worker] = {}

    def interpreter(self, version: str) -> Worker:
        return self._kept(("interpreter", version), lambda: triton.interpreter(version))

    def compiler(self, version: str) -> Worker:
        return self._kept(("compiler", version), lambda: triton.compiler(version, self._folder / f"triton-{version}"))

    def emulator(self) -> emulated.Emulator:
        return self._kept(("emulator",), lambda: self.new_emulator(self._folder / "log"))

    def new_emulator(self, log: Path, capability: int = 90) -> emulated.Emulator:
        """One that nobody used before, and the caller closes."""
        return emulated.Emulator(emulated.driver(self.shared, 10 * capability), log, capability)

    def flow_emulator(self) -> Worker:
        setup = "tests.ops.scenarios.flow_emulated:pretend"
        return self._kept(("flow",), lambda: Worker(setup, str(emulated.flow_library(self.shared))))

    def close(self) -> None:
        for worker in self._found.values():
            worker.close()

    def _kept(self, key: tuple, start: Callable[[], Worker]) -> Worker:
        if key not in self._found:
            self._found[key] = start()
        return self._found[key]


def shared_folder(own: Path) -> Path:
    """Of a pytest-xdist process the folder of all of them."""
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
