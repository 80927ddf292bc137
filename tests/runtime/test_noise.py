"""The noise source draws what the reference draws, bit for bit, in its order."""

import pytest
import torch

from mingcore import InputError
from mingcore.runtime.noise import RequestNoise, SeededNoise, noise_source

# the seeds with which the golden runs were recorded
RUNS = [
    ("g_tts", "six.", 72, 6),
    ("g_tts", "stop.", 73, 18),
    ("g_tts", "nostop.", 74, 25),
    ("g_tts", "e2e16000.", 75, 18),
    ("g_tts", "e2e24000.", 75, 18),
    ("h_asr", "vae_", 91, 0),
    ("i_edit", "edit.", 95, 17),
]

# of seed 72, "per_request": the start's first three values, and the last draw's last three
FIRST, LAST = (0.953971, -1.311554, 0.530478), (-1.007207, 0.15196, -0.901355)


@pytest.mark.strict
@pytest.mark.parametrize(("file", "prefix", "seed", "patches"), RUNS)
def test_same_bits_as_the_reference(tools, file, prefix, seed, patches):
    recorded = tools.Recorded(file)
    tape = tools.Tape(recorded, prefix)
    source = SeededNoise(seed)
    first = tape.draws[0][1]
    if first.shape[2] != 5:
        mean = torch.zeros(1, first.shape[2], 64)
        assert torch.equal(source.posterior(mean), tape.posterior(mean))
    for _ in range(patches):
        assert torch.equal(source.patch(1, 5, 64, 10), tape.patch(1, 5, 64, 10))
    assert tape.is_over


def test_order_layout_and_dtype_of_the_draws(monkeypatch):
    draws = []

    def normal_(tensor, *, generator):
        draws.append((tuple(tensor.shape), tensor.dtype, tensor.is_contiguous(), generator))
        return tensor.zero_()

    monkeypatch.setattr(torch.Tensor, "normal_", normal_)
    source = SeededNoise(0)
    mean = torch.zeros(2, 7, 64, dtype=torch.bfloat16)
    assert source.posterior(mean).shape == mean.shape
    noise = source.patch(2, 5, 64, 3)
    assert noise.shape == (4, 2, 5, 64) and noise.dtype == torch.float32
    host = source._host
    assert draws == [
        ((2, 64, 7), torch.bfloat16, True, source._device),
        ((2, 64, 5), torch.float32, True, host),
        *[((2, 5, 64), torch.float32, True, source._device)] * 3,
    ]


def test_other_seeds_other_noise():
    one, two = (SeededNoise(s).patch(1, 5, 64, 2) for s in (1, 2))
    assert not torch.equal(one, two)
    assert torch.equal(one, SeededNoise(1).patch(1, 5, 64, 2))
    # the draws of one patch differ from each other and are standard normal
    noise = SeededNoise(3).patch(1, 50, 64, 9)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert (noise[1:] != noise[:-1]).any(dim=-1).all()


def test_a_request_alone_and_in_a_batch_gets_the_same_noise():
    together = RequestNoise([5, 6, 7])
    alone = {seed: RequestNoise(seed) for seed in (5, 6, 7)}
    for _ in range(3):
        noise = together.patch(3, 5, 64, 10)
        assert noise.shape == (11, 3, 5, 64) and noise.dtype == torch.float32
        for b, seed in enumerate((5, 6, 7)):
            assert torch.equal(noise[:, b : b + 1], alone[seed].patch(1, 5, 64, 10))
    # one that has two patches behind it joins others
    joined = RequestNoise([9, 5], patches=[0, 2]).patch(2, 5, 64, 10)
    assert torch.equal(joined[:, 1], noise[:, 0])
    mean = torch.zeros(2, 7, 64, dtype=torch.bfloat16)
    drawn = RequestNoise([1, 2]).posterior(mean)
    assert drawn.dtype == mean.dtype and torch.equal(drawn[1:], RequestNoise(2).posterior(mean[:1]))


def test_noise_per_request_is_independent_and_normal():
    source = RequestNoise(3)
    first, second = source.patch(1, 50, 64, 9), source.patch(1, 50, 64, 9)
    assert torch.equal(first[:4], RequestNoise(3).patch(1, 50, 64, 3))  # whatever the steps
    draws = torch.cat((first, second, RequestNoise(4).patch(1, 50, 64, 9))).flatten(1)
    assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1) < 0.02
    correlation = draws @ draws.T / draws.shape[1]
    assert (correlation - torch.eye(len(draws))).abs().max() < 0.1
    posterior = RequestNoise(3).posterior(torch.zeros(1, 50, 64))
    assert (draws @ posterior.flatten() / draws.shape[1]).abs().max() < 0.1


def test_noise_per_request_keeps_its_numbers():
    """Saved seeds give the same sound with a later version."""
    noise = RequestNoise(72).patch(1, 5, 64, 10)
    torch.testing.assert_close(noise[0, 0, 0, :3], torch.tensor(FIRST), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(noise[10, 0, 4, -3:], torch.tensor(LAST), rtol=1e-5, atol=1e-6)


def test_orders_by_name():
    assert isinstance(noise_source("reference", 1, "cpu"), SeededNoise)
    assert torch.equal(noise_source("per_request", 1, "cpu").patch(1, 5, 8, 2), RequestNoise(1).patch(1, 5, 8, 2))
    with pytest.raises(InputError, match="made for 2 requests, got 3"):
        RequestNoise([1, 2]).patch(3, 5, 8, 2)
    with pytest.raises(InputError, match="one for each of 2 seeds, got 1"):
        RequestNoise([1, 2], patches=[0])
