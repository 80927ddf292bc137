"""GPUs that a bundle is made for: a compute capability, and how many multiprocessors."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError

# multiprocessors of the usual GPU: A100, A40, L40, H100 SXM and H200, B200, RTX 5090
_PROCESSORS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 170}
_FORM = re.compile(r"sm_(\d{2,3})a?(?::(\d{1,3}))?")


@dataclass(frozen=True, order=True)
class Target:
    """capability: such as 90; processors: multiprocessors, on whose number the choice of tiles depends."""

    capability: int
    processors: int

    def __str__(self) -> str:
        return f"sm_{self.capability}:{self.processors}"

    @property
    def slug(self) -> str:
        """The name of its folder in a bundle."""
        return f"sm_{self.capability}-{self.processors}"


def parse(text: str) -> tuple[Target, ...]:
    """ "sm_90a,sm_80:104" -> Targets; after the colon the number of multiprocessors.

    Without one it is that of the usual GPU of the architecture. Raises InputError for another form,
    an unknown architecture without a number, and for one that is named twice.
    """
    found: list[Target] = []
    for part in (p.strip() for p in text.split(",")):
        match = _FORM.fullmatch(part)
        if match is None:
            raise InputError(f"arch: must be such as sm_90a,sm_80 or sm_90a:114, got {part!r}")
        capability, processors = int(match[1]), match[2]
        if capability < 80:
            raise InputError(f"arch: the kernels take sm_80 and newer, got {part!r}")
        if processors is None and capability not in _PROCESSORS:
            raise InputError(f"arch: say how many multiprocessors it has, such as {part}:132")
        target = Target(capability, int(processors or _PROCESSORS[capability]))
        if target in found:
            raise InputError(f"arch: {part} is named twice")
        found.append(target)
    return tuple(found)
