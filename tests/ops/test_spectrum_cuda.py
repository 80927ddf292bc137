"""The CUDA kernels of frame_embed, overlap_add and spectrum_head on an emulated driver."""

import pytest

pytest.importorskip("cuda.bindings")

from mingcore.ops.spectrum import cuda as cuda_spectrum

SCENARIOS = "tests.ops.scenarios"


def test_emulated_frames_match_the_oracle(workers):
    (done,) = workers.emulator()(f"{SCENARIOS}.frames_emulated:run", few=True)
    assert done == {"checked": 126, "kernels": 11, "refused": 3}


@pytest.mark.slow
def test_more_frames_emulated(workers):
    (done,) = workers.emulator()(f"{SCENARIOS}.frames_emulated:run", few=False, timeout_s=900)
    assert done == {"checked": 228, "kernels": 11, "refused": 3}


@pytest.mark.slow
def test_a_patch_of_frames_is_one_launch(workers):
    settings = {"op": "frame_embed", "name": "real_patch", "dtypes": ["bfloat16"], "index": 0}
    _, lines = workers.emulator().logged("tests.ops.runners.emulated_device:run", **settings)
    assert any(f" 56 128 {cuda_spectrum.skinny_gemm_bytes(1)} " in line for line in lines)  # 5 frames: 56 blocks


def test_emulated_streams(workers):
    (done,) = workers.emulator()(f"{SCENARIOS}.spectrum_emulated:run", few=True)
    assert done == {"streamed": 2, "refused": 5}


@pytest.mark.slow
def test_every_stream_emulated(workers):
    (done,), lines = workers.emulator().logged(f"{SCENARIOS}.spectrum_emulated:run", few=False, timeout_s=900)
    assert done == {"streamed": 18, "refused": 5}
    lines = [line.split()[1:4] for line in lines if line.startswith("launch")]
    # at the real size a patch is two launches: 81 blocks, and one of 512 threads
    real = ["81", "128", str(cuda_spectrum.skinny_gemm_bytes(1))]
    assert ["1", "512", str(cuda_spectrum.SHARED_BYTES)] == lines[lines.index(real) + 1]


@pytest.mark.parametrize("size", (32, 1280, 490, 4096))
def test_blocks_of_the_inverse_fit(size):
    for hop in (1, size // 4, size):
        for T in (0, 1, 5, 500):
            hops, chunks, group = cuda_spectrum.inverse_blocks(T, size, hop)
            parts = -(-size // hop)
            assert hops * chunks >= T + parts - 1 > hops * (chunks - 1) or T + parts == 1
            used = 16 + 8 * -(-hops * hop // 2) + 8 * group * size
            assert group >= 1 and used <= cuda_spectrum.SHARED_BYTES, (hop, T)


def test_radices_give_the_points():
    assert sorted(cuda_spectrum.radices(640)) == [2, 5, 8, 8]
    assert cuda_spectrum.radices(1) == () and cuda_spectrum.radices(13) is None
