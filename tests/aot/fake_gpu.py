"""A Triton driver that records launches and runs nothing."""

from dataclasses import dataclass, field

from mingcore.aot.trace import NoDriver


@dataclass
class Started:
    kernel: str
    grid: tuple[int, int, int]
    binary: bytes
    arguments: tuple


@dataclass
class _Utils:
    loaded: dict[str, bytes] = field(default_factory=dict)

    def get_device_properties(self, device):
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, name, kernel, shared, device):
        self.loaded[name] = kernel
        return object(), name, 32, 0, 1024

    def unload_module(self, module):
        pass


class FakeGPU(NoDriver):
    def __init__(self, capability: int = 90):
        super().__init__(capability)
        self.utils, self.started = _Utils(), []

    def launcher_cls(self, src, metadata):
        def run(x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments):
            binary = self.utils.loaded[function]
            self.started.append(Started(function, (x, y, z), binary, arguments))

        return run
