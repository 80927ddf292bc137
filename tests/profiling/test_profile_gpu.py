"""A request profiled on a GPU: kernels belong to stages, and device time adds up."""

import pytest
import torch

from mingcore import MingAudio
from mingcore.profiling import STAGES, profile

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def test_kernels_belong_to_the_stages_that_launch_them():
    ming = MingAudio.from_pretrained("tiny", device="cuda")
    found = profile(ming, lambda m: m.tts_stream("one two", seed=3, steps=2, max_seconds=0.3))
    rows = {row.stage: row for row in found.stages}
    assert set(STAGES) - {"vae encode"} <= set(rows)
    kernels = [s for s in found.slices if s.kind == "kernel"]
    assert kernels and sum(row.launches for row in found.stages) == len(kernels)
    for stage in ("llm", "flow", "semantic", "vae decode"):
        assert rows[stage].launches > 0 and rows[stage].device_ms > 0, rows[stage]
    busy = sum(row.device_ms + row.device_gap_ms for row in found.stages)
    span = (max(s.end_us for s in kernels) - kernels[0].start_us) / 1e3
    assert busy == pytest.approx(span, rel=0.01)  # one stream: kernels do not overlap
