"""The AudioVAE against the reference: every key of a_encode, b_unified and c_decode."""

from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from mingcore import ops
from mingcore.model.headers import read_headers
from mingcore.model.vae.encoder import split_scores

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("sdpa", "fa2", "full")
INPUTS = {
    "a_encode": ("*.waveform", "*.sample_noise.*"),
    "b_unified": ("latent", "latent_b2"),
    "c_decode": ("latent", "head.in"),
}


def outputs(name):
    keys = read_headers(GOLDEN / f"{name}.safetensors")
    return [k for k in keys if not any(fnmatch(k, pattern) for pattern in INPUTS[name])]


@pytest.fixture(scope="module")
def encoded(golden, vae_of_kind):
    given, ours = golden("a_encode"), {}
    for n in ("n16000", "n16037"):
        samples = given[f"{n}.waveform"]
        frames = ops.frame_embed(samples, torch.eye(320), hop=320)
        ours[f"{n}.frames"] = frames
        ours[f"{n}.frame_num"] = torch.tensor([frames.shape[1]])
        noise = given[f"{n}.sample_noise.000.randn"].transpose(1, 2)
        for kind in KINDS:
            vae = vae_of_kind(kind)
            state = vae.new_encoder_state(1, frames.shape[1])
            h = vae.encoder.scores(samples, state.backbone)
            mean, std = vae.encode(samples)
            assert torch.equal(mean, split_scores(h)[0])
            ours[f"{n}.{kind}.h"] = h
            ours[f"{n}.{kind}.mean"], ours[f"{n}.{kind}.std"] = mean, std
            ours[f"{n}.{kind}.scale"] = h.chunk(2, dim=-1)[1]
            ours[f"{n}.{kind}.latent_sampled"] = vae.sample_posterior(mean, std, noise)
    return ours


@pytest.mark.parametrize("key", outputs("a_encode"))
def test_encode(key, encoded, golden, assert_golden):
    assert_golden(key, encoded[key], golden("a_encode")[key])


@pytest.fixture(scope="module")
def unified(golden, golden_model):
    given, vae = golden("b_unified"), golden_model.vae
    latent = given["latent"]
    ours = {"oneshot": vae.unify(latent)[0], "oneshot_b2": vae.unify(given["latent_b2"])[0]}
    state, chunks = vae.new_semantic_state(1, 1), []
    for i in range(0, latent.shape[1], 5):
        chunk, state = vae.unify(latent[:, i : i + 5], state)
        chunks.append(chunk)
    ours["chunked5"] = torch.cat(chunks, dim=1)
    for layer in range(2):
        T = latent.shape[1]
        ours[f"cache.k{layer}"] = state.keys[layer][:, :T].transpose(1, 2)
        ours[f"cache.v{layer}"] = state.values[layer][:, :T].transpose(1, 2)
    return ours


@pytest.mark.parametrize("key", outputs("b_unified"))
def test_unify(key, unified, golden, assert_golden):
    assert_golden(key, unified[key], golden("b_unified")[key])


def streamed(vae, latent, sizes, flush=True):
    """Samples [B,1,L] of latents cut into chunks of these sizes; flush: the last one is last."""
    state, chunks, start = None, [], 0
    for size in sizes:
        end = start + size
        last = flush and end == latent.shape[1]
        samples, state = vae.decode(latent[:, start:end], state, last=last)
        chunks.append(samples)
        start = end
    assert start == latent.shape[1]
    return torch.cat(chunks, dim=1)[:, None]


@pytest.fixture(scope="module")
def decoded(golden, vae_of_kind):
    given, ours = golden("c_decode"), {}
    latent = given["latent"]
    for kind in KINDS:
        vae = vae_of_kind(kind)
        state = vae.new_decoder_state(1, latent.shape[1])
        ours[f"{kind}.backbone_out"] = vae.decoder.backbone_out(latent, state.backbone)
        ours[f"{kind}.oneshot"] = vae.decode(latent)[0][:, None]
        ours[f"{kind}.stream"] = streamed(vae, latent, [5] * 8)
        ours[f"{kind}.stream_noflush"] = streamed(vae, latent, [5] * 8, flush=False)
    vae = vae_of_kind("sdpa")
    head = vae.decoder.head
    ours["sdpa.head_out"] = head(ours["sdpa.backbone_out"])
    ours["sdpa.stream_irregular_3_7_2_8_rest"] = streamed(vae, latent, [3, 7, 2, 8, 20])
    ours["sdpa.oneshot_single_chunk"] = vae.decode(latent[:, :5])[0][:, None]
    ours["sdpa.stream_single_chunk"] = streamed(vae, latent[:, :5], [5])
    samples, _ = ops.spectrum_head(given["head.in"], head.weight, head.bias, vae.decoder.window, 320, None, True)
    ours["head.waveform"] = samples[:, None]
    return ours


@pytest.mark.parametrize("key", outputs("c_decode"))
def test_decode(key, decoded, golden, assert_golden):
    assert_golden(key, decoded[key], golden("c_decode")[key])
