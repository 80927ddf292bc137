"""The CUDA kernels of frame_embed, overlap_add and spectrum_head on an emulated driver."""

import re

import pytest

pytest.importorskip("cuda.bindings")

from mingcore.ops.spectrum import cuda as cuda_audio


def emulate(emulated_driver, log, *arguments: str) -> tuple[int, ...]:
    done = emulated_driver("run_emulated_audio.py", log, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.fullmatch(r"checked (\d+) streamed (\d+) refused (\d+)\n", done.stdout)
    return tuple(map(int, found.groups()))


def emulate_frames(emulated_driver, log, *arguments: str) -> tuple[int, ...]:
    done = emulated_driver("run_emulated_frames.py", log, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.fullmatch(r"checked (\d+) kernels (\d+) refused (\d+)\n", done.stdout)
    return tuple(map(int, found.groups()))


def test_emulated_frames_match_the_oracle(emulated_driver, tmp_path):
    checked, kernels, refused = emulate_frames(emulated_driver, tmp_path / "log", "few")
    assert checked >= 100 and kernels == 11 and refused == 3


@pytest.mark.slow
def test_every_case_of_frames_emulated(emulated_driver, tmp_path):
    checked, kernels, _ = emulate_frames(emulated_driver, tmp_path / "log")
    assert checked >= 200 and kernels == 11
    lines = (tmp_path / "log").read_text()  # 5 frames of the released model: 56 blocks, one launch
    assert f" 56 128 {cuda_audio.skinny_gemm_bytes(1)} " in lines


def test_emulated_kernels_match_the_oracle(emulated_driver, tmp_path):
    checked, streamed, refused = emulate(emulated_driver, tmp_path / "log", "few")
    assert checked >= 16 and streamed == 2 and refused == 5


@pytest.mark.slow
def test_every_case_and_stream_emulated(emulated_driver, tmp_path):
    checked, streamed, _ = emulate(emulated_driver, tmp_path / "log")
    assert checked >= 40 and streamed == 18
    lines = [line.split()[1:4] for line in (tmp_path / "log").read_text().splitlines() if line.startswith("launch")]
    # at the real size a patch is two launches: 81 blocks, and one of 512 threads
    real = ["81", "128", str(cuda_audio.skinny_gemm_bytes(1))]
    assert ["1", "512", str(cuda_audio.SHARED_BYTES)] == lines[lines.index(real) + 1]


@pytest.mark.parametrize("size", (32, 1280, 490, 4096))
def test_blocks_of_the_inverse_fit(size):
    for hop in (1, size // 4, size):
        for T in (0, 1, 5, 500):
            hops, chunks, group = cuda_audio.inverse_blocks(T, size, hop)
            parts = -(-size // hop)
            assert hops * chunks >= T + parts - 1 > hops * (chunks - 1) or T + parts == 1
            used = 16 + 8 * -(-hops * hop // 2) + 8 * group * size
            assert group >= 1 and used <= cuda_audio.SHARED_BYTES, (hop, T)


def test_radices_give_the_points():
    assert sorted(cuda_audio.radices(640)) == [2, 5, 8, 8]
    assert cuda_audio.radices(1) == () and cuda_audio.radices(13) is None
