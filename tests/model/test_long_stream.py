"""Half an hour through the streaming decoder and encoder: memory flat, no drift."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

FRAMES = 30 * 60 * 50
PATCH = 5


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_thirty_minutes(golden_model):
    """Row 0 goes on all the time; at the end it sounds as a stream that has just begun."""
    vae = golden_model.vae
    generator = torch.Generator().manual_seed(0)
    motif = torch.randn(1, 200, 64, generator=generator)  # 4 s, again and again
    state, sizes, resident, samples = None, set(), [], 0
    tails = []
    for i in range(0, FRAMES, PATCH):
        at = i % 200
        last = i + PATCH >= FRAMES
        chunk, state = vae.decode(motif[:, at : at + PATCH], state, last=last)
        samples += chunk.shape[1]
        assert chunk.isfinite().all()
        sizes.add(state.nbytes)
        if i % 9000 == 0:
            resident.append(resident_bytes())
        if i >= FRAMES - 200:
            tails.append(chunk)
    assert samples == FRAMES * 320
    assert len(sizes) == 1
    assert max(resident[1:]) - resident[1] < 8 << 20, resident
    # the last seconds, against a stream that has heard the motif twice only
    begun, out = None, []
    for i in range(0, 400, PATCH):
        at = i % 200
        chunk, begun = vae.decode(motif[:, at : at + PATCH], begun, last=i + PATCH >= 400)
        if i >= 200:
            out.append(chunk)
    late, early = torch.cat(tails, 1), torch.cat(out, 1)
    n = 320 * 60  # beyond every window's reach
    error = (late[:, -n:] - early[:, -n:]).abs().max() / early.abs().max()
    assert error < 1e-4, f"drift {error:.2e}"


def test_thirty_minutes_of_input(golden_model):
    """A microphone's chunks that never fit a frame; the end is as if nothing had been before."""
    vae = golden_model.vae
    generator = torch.Generator().manual_seed(0)
    motif = 0.3 * torch.randn(1, 1601, generator=generator)  # 5 frames and a sample
    state, sizes, resident, places, frames = vae.new_encoder_state(1), set(), [], set(), 0
    chunks = 30 * 60 * 16000 // 1601
    for i in range(chunks):
        mean, std, _ = vae.encode_stream(motif, state, last=i + 1 == chunks)
        frames += mean.shape[1]
        assert mean.isfinite().all() and std.isfinite().all()
        sizes.add(state.nbytes)
        places.add((state.tail.data_ptr(), *(k.data_ptr() for k in state.backbone.keys)))
        if i % 1800 == 0:
            resident.append(resident_bytes())
        late = mean
    assert frames == -(-chunks * 1601 // 320) and state.lengths.tolist() == [frames]
    assert len(sizes) == len(places) == 1
    assert max(resident[1:]) - resident[1] < 8 << 20, resident
    # the last 100 frames alone, cut at a frame of the whole
    whole = motif.repeat(1, 40)
    start = (chunks * 1601 // 320 - 100) * 320 - (chunks - 40) * 1601
    early = vae.encode(whole[:, start:])[0]
    n = late.shape[1] - 1
    error = (late[:, -n:] - early[:, -n:]).abs().max() / early.abs().max()
    assert error < 1e-4, f"drift {error:.2e}"
