"""Convolutional VAEs against the packages they come from, with random weights.

The packages may be installed, or lie in folders (`pip install --no-deps --target`) which
REFERENCE_VOXCPM and REFERENCE_TRANSFORMERS name. Run with -rP to see how far apart both are.
"""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

from mingcore.model.vae.conv import VibeVoiceVAE, VoxCPMVAE, load
from mingcore.testing import streaming
from mingcore.testing.compare import assert_within, max_relative
from mingcore.testing.conv_checkpoints import (
    REAL_VIBEVOICE,
    REAL_VOXCPM,
    REAL_VOXCPM2,
    VIBEVOICE,
    VOXCPM,
    VOXCPM2,
    vibevoice_tensors,
    voxcpm_tensors,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the packages' own
]
NETWORK = 1e-5
CONFIGS = {
    "v1": VOXCPM,
    "v1-dense": {**VOXCPM, "depthwise": False, "encoder_rates": [5, 2], "decoder_rates": [1]},
    "v1-noise": {**VOXCPM, "use_noise_block": True},
    "v2": VOXCPM2,
    "v2-plain": {**VOXCPM2, "sr_bin_boundaries": None},
    "v2-init": {**VOXCPM2, "cond_type": "scale_bias_init", "cond_out_layer": True},
    "v2-add": {**VOXCPM2, "cond_type": "add"},
    "v2-concat": {**VOXCPM2, "cond_type": "concat", "cond_out_layer": True},
}
REAL = {"v1": REAL_VOXCPM, "v2": REAL_VOXCPM2}


def package_file(package: str, variable: str, inner: str) -> Path:
    """A file of an installed package, which is not imported; skips where there is none."""
    folder = os.environ.get(variable)
    if folder:
        path = Path(folder) / package / inner
    else:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / inner if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip(f"{package} is not installed and {variable} names no folder that has it")
    return path


@pytest.fixture(scope="module")
def voxcpm():
    """`voxcpm("v1")`: the module with AudioVAE and AudioVAEConfig."""
    pytest.importorskip("pydantic")

    def module(version):
        name = "audio_vae.py" if version == "v1" else "audio_vae_v2.py"
        path = package_file("voxcpm", "REFERENCE_VOXCPM", f"modules/audiovae/{name}")
        spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return module


@pytest.fixture(scope="module")
def transformers():
    """The modules with VibeVoice's acoustic tokenizer."""
    package_file("transformers", "REFERENCE_TRANSFORMERS", "models/auto/__init__.py")
    folder = os.environ.get("REFERENCE_TRANSFORMERS")
    if folder:
        sys.path.insert(0, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module("transformers")
            config = found.VibeVoiceAcousticTokenizerConfig
            model = found.VibeVoiceAcousticTokenizerModel
    except (ImportError, AttributeError) as error:
        pytest.skip(f"transformers has no usable vibevoice_acoustic_tokenizer: {error}")
    finally:
        if folder:
            sys.path.remove(folder)
    yield lambda values: model(config(**values)).eval()


def reference_vae(module, config, tensors):
    vae = module.AudioVAE(module.AudioVAEConfig(**config)).eval()
    vae.load_state_dict(tensors)
    return vae


def close(got, plain, exact, what):
    """Within 1e-5 of the reference in float32, and the tolerance against it in float64."""
    assert_within(got, plain, exact, what)
    error = max_relative(got, plain)
    assert error <= NETWORK, f"{what}: {error:.2e}"
    print(
        f"{what}: {error:.2e}, against float64 {max_relative(got, exact):.2e} (theirs {max_relative(plain, exact):.2e})"
    )


@torch.no_grad()
def hold_voxcpm(module, config, seconds, chunk_latents):
    tensors = voxcpm_tensors(config, seed=3)
    theirs = reference_vae(module, config, tensors)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in tensors.items()}
    second = "out_sample_rate" in config
    ours = VoxCPMVAE.from_state_dict(tensors, config, version=2 if second else 1)
    torch.manual_seed(0)
    L = int(seconds * 16000)
    samples, T = torch.randn(2, L), -(-L // ours.hop_samples)
    latents = torch.randn(2, T, config["latent_dim"])
    mean, std = ours.encode(samples)
    wide = reference_vae(module, config, tensors).double()
    inner = torch.nn.functional.pad(samples, (0, T * ours.hop_samples - L)).unsqueeze(1)
    plain, exact = theirs.encoder(inner), wide.encoder(inner.double())
    once = theirs.encode(samples, 16000).transpose(1, 2)
    assert torch.equal(once, plain["mu"].transpose(1, 2))
    close(mean, once, exact["mu"].transpose(1, 2), "mean")
    deviations = [(e["logvar"] / 2).exp().transpose(1, 2) for e in (plain, exact)]
    close(std, *deviations, "std")
    rates = [None]
    if config.get("sr_bin_boundaries"):
        rates += [16000, [44100, 24000]]
    z = latents.transpose(1, 2)
    noise = ours.draw_noise(2, T, torch.Generator().manual_seed(9)) or None
    for rate in rates:
        # one for each row: with "concat" the package takes nothing else
        each = rate if isinstance(rate, list) else [rate or 48000] * 2
        more = [torch.tensor(each)] if config.get("sr_bin_boundaries") else []
        torch.manual_seed(9)  # the reference draws its noise as it goes
        plain = theirs.decode(z, *more)[:, 0]
        exact = None
        if noise is None:
            exact = wide.decode(z.double(), *more)[:, 0]
        got, _ = ours.decode(latents, sample_rate=rate, noise=noise)
        close(got, plain, plain.double() if exact is None else exact, f"samples at {rate}")
    if noise is not None:
        return
    state, out = None, []
    for chunk in latents.split(chunk_latents, 1):
        y, state = ours.decode(chunk, state, last=False)
        out.append(y)
    more = [torch.tensor([48000] * 2)] if config.get("sr_bin_boundaries") else []
    plain, exact = theirs.decode(z, *more)[:, 0], wide.decode(z.double(), *more)[:, 0]
    close(torch.cat(out, 1), plain, exact, "streamed")
    if second:  # its streams are of one row
        with theirs.streaming_decode() as stream:
            parts = [stream.decode_chunk(chunk) for chunk in z[:1].split(chunk_latents, 2)]
        exact = wide.decode(z[:1].double())[:, 0]
        close(torch.cat(out, 1)[:1], torch.cat(parts, 2)[:, 0], exact, "streamed by both")


@pytest.mark.parametrize("name", CONFIGS)
def test_voxcpm(voxcpm, name):
    hold_voxcpm(voxcpm(name[:2]), CONFIGS[name], 0.01, 3)


@pytest.mark.parametrize("name", REAL)
def test_voxcpm_at_its_real_size(voxcpm, name):
    hold_voxcpm(voxcpm(name), REAL[name], 1.0, 4)


@pytest.mark.parametrize("name", REAL)
def test_voxcpm_defaults(voxcpm, name):
    """An empty config means the same to both."""
    module = voxcpm(name)
    theirs = module.AudioVAE(module.AudioVAEConfig())
    ours = VoxCPMVAE.from_state_dict(theirs.state_dict(), {}, version=int(name[1]))
    assert ours.hop_samples == theirs.hop_length and ours.sample_rate == theirs.sample_rate


@torch.no_grad()
def hold_vibevoice(make, config, T, chunk_latents, pieces):
    tensors = vibevoice_tensors(config, seed=3)
    theirs, wide = make(config), make(config).double()
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in tensors.items()}
    for model in (theirs, wide):
        model.load_state_dict(tensors)
    ours = VibeVoiceVAE.from_state_dict(tensors, config)
    torch.manual_seed(0)
    samples = torch.randn(2, config["channels"], T * ours.hop_samples)
    latents = torch.randn(2, T, config["hidden_size"])
    mine = samples if config["channels"] > 1 else samples[:, 0]
    plain = theirs.encode(samples, sample=False).latents
    exact = wide.encode(samples.double(), sample=False).latents
    close(ours.encode(mine)[0], plain, exact, "mean")
    sound, truth = theirs.decode(latents).audio, wide.decode(latents.double()).audio
    squeeze = (lambda y: y) if config["channels"] > 1 else (lambda y: y[:, 0])
    close(ours.decode(latents)[0], squeeze(sound), squeeze(truth), "samples")
    state, out, cache, streamed = None, [], None, []
    for chunk in latents.split(chunk_latents, 1):
        y, state = ours.decode(chunk, state, last=False)
        out.append(y)
        step = theirs.decode(chunk, padding_cache=cache, use_cache=True)
        cache = step.padding_cache
        streamed.append(step.audio)
    got = torch.cat(out, -1)
    close(got, squeeze(torch.cat(streamed, -1)), squeeze(truth), "streamed by both")
    close(got, squeeze(sound), squeeze(truth), "streamed")
    state, out, start = None, [], 0
    for n in pieces:
        mean, _, state = ours.encode_stream(mine[..., start : start + n], state)
        out.append(mean)
        start += n
    close(torch.cat(out, 1), plain, exact, "mean, streamed")
    cache, streamed = None, []
    for chunk in samples.split(ours.hop_samples, -1):
        step = theirs.encode(chunk, padding_cache=cache, use_cache=True, sample=False)
        cache = step.padding_cache
        streamed.append(step.latents)
    close(torch.cat(out, 1), torch.cat(streamed, 1), exact, "mean, streamed by both")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"channels": 2, "kernel_size": 3, "hidden_act": "gelu_pytorch_tanh"},
        {"kernel_size": 1, "downsampling_ratios": [5, 2, 2], "hidden_act": "silu"},
    ],
)
def test_vibevoice(transformers, change):
    config = {**VIBEVOICE, **change}
    hop = torch.tensor(config["downsampling_ratios"]).prod().item()
    hold_vibevoice(transformers, config, 12, 1, streaming.split(12 * hop, 5))


def test_vibevoice_at_its_real_size(transformers):
    hold_vibevoice(transformers, REAL_VIBEVOICE, 3, 1, [3200, 1, 4799, 1600])


def test_vibevoice_as_saved(transformers, tmp_path):
    """What `save_pretrained` writes is what `load` reads."""
    torch.manual_seed(0)
    theirs = transformers(VIBEVOICE)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    latents = torch.randn(1, 4, 6)
    with torch.no_grad():
        expected = theirs.decode(latents).audio[:, 0]
    assert max_relative(ours.decode(latents)[0], expected) <= NETWORK
