"""Codecs of transformers on our convolutions, against their own: one-shot, streamed, and undone."""

import copy

import pytest
import torch
from torch import nn

from mingcore.errors import BackendError, InputError
from mingcore.integrations import transformers as kernels
from mingcore.testing.compare import max_relative
from mingcore.testing.conv_checkpoints import VIBEVOICE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the library's own
CLOSE = 1e-5
CODECS = ["mimi", "encodec", "encodec-group-norm", "dac", "vibevoice"]


def build(transformers, name):
    """A small codec with random weights in float32."""
    torch.manual_seed(0)
    encodec = {
        "num_filters": 8,
        "hidden_size": 32,
        "codebook_size": 32,
        "codebook_dim": 32,
        "upsampling_ratios": [4, 3, 2],
    }
    if name == "mimi":
        model = transformers.MimiModel(
            transformers.MimiConfig(
                num_filters=8,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                head_dim=8,
                codebook_size=32,
                codebook_dim=16,
                vector_quantization_hidden_dimension=16,
                num_quantizers=4,
                upsampling_ratios=[4, 3, 2],
                sliding_window=16,
                upsample_groups=32,
            )
        )
    elif name == "encodec":
        model = transformers.EncodecModel(transformers.EncodecConfig(**encodec))
    elif name == "encodec-group-norm":
        config = transformers.EncodecConfig(
            **encodec, norm_type="time_group_norm", use_causal_conv=False, audio_channels=2
        )
        model = transformers.EncodecModel(config)
    elif name == "dac":
        model = transformers.DacModel(
            transformers.DacConfig(
                encoder_hidden_size=8,
                decoder_hidden_size=64,
                downsampling_ratios=[2, 4],
                upsampling_ratios=[4, 2],
                hidden_size=32,
                codebook_size=32,
                codebook_dim=4,
                n_codebooks=3,
            )
        )
    else:
        config = transformers.VibeVoiceAcousticTokenizerConfig(**VIBEVOICE)
        model = transformers.VibeVoiceAcousticTokenizerModel(config)
    for key, p in model.named_parameters():
        if "alpha" in key or "gamma" in key:
            p.data.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def both(transformers, name):
    model = build(transformers, name)
    fast = copy.deepcopy(model)
    return model, fast, kernels.accelerate(fast)


def encoded(model, x, **cache):
    out = model.encoder(x, **cache)
    return out if isinstance(out, torch.Tensor) else out.latents


def decoded(model, z, **cache):
    out = model.decoder(z, **cache)
    return out if isinstance(out, torch.Tensor) else getattr(out, "audio", out[0])


def close(got, expected, what):
    error = max_relative(got, expected)
    assert error <= CLOSE, f"{what}: {error:.2e}"
    print(f"{what}: {error:.2e}")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("length", [960, 331])
def test_one_shot(transformers, name, length):
    model, fast, report = both(transformers, name)
    x = torch.randn(2, 2 if name == "encodec-group-norm" else 1, length)
    if name == "vibevoice":
        x = x[..., : length // 6 * 6]
    latents = encoded(model, x)
    close(encoded(fast, x), latents, f"{name} encodes")
    if name == "mimi":
        codes = torch.randint(0, 32, (2, 4, 9))
        close(fast.decode(codes).audio_values, model.decode(codes).audio_values, f"{name} decodes")
    else:
        if name == "vibevoice":
            latents = latents.transpose(1, 2)
        close(decoded(fast, latents), decoded(model, latents), f"{name} decodes")
    convolutions = [key for key, m in fast.named_modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    assert sorted({*report.changed, *report.left}) == sorted(convolutions)
    assert all("quantizer" in key for key in report.left)
    if name in ("mimi", "encodec", "dac"):
        assert any("and" in what for what in report.changed.values())  # with its activation
    assert f"{len(report.changed)} modules changed" in str(report)


def test_mimi_encodes_a_stream(transformers):
    model, fast, _ = both(transformers, "mimi")
    x, caches = torch.randn(2, 1, 48 * 9), [{}, {}]
    outs = [[], []]
    for chunk in x.split(48, dim=2):
        for i, m in enumerate((model, fast)):
            out = m.encoder(chunk, use_streaming=True, **caches[i])
            caches[i] = {"past_key_values": out.past_key_values, "padding_cache": out.padding_cache}
            outs[i].append(out.latents)
    theirs, ours = (torch.cat(o, dim=2) for o in outs)
    close(ours, theirs, "mimi encodes a stream")


def test_vibevoice_streams_both_ways(transformers):
    model, fast, _ = both(transformers, "vibevoice")
    x = torch.randn(2, 1, 6 * 20)
    z = encoded(model, x).transpose(1, 2)
    for part, given in (("encoder", x.split(12, dim=2)), ("decoder", z.split(3, dim=2))):
        outs, caches = [[], []], [None, None]
        for chunk in given:
            for i, m in enumerate((model, fast)):
                out = getattr(m, part)(chunk, padding_cache=caches[i], use_cache=True)
                caches[i] = out.padding_cache
                outs[i].append(out.latents.transpose(1, 2) if part == "encoder" else out.audio)
        theirs, ours = (torch.cat(o, dim=2) for o in outs)
        close(ours, theirs, f"vibevoice's {part} streams")
        whole = encoded(model, x).transpose(1, 2) if part == "encoder" else decoded(model, z)
        close(ours, whole, f"vibevoice's {part}, against one shot")


@pytest.mark.parametrize("name", CODECS)
def test_undo(transformers, name):
    model, fast, report = both(transformers, name)
    x = torch.randn(1, 2 if name == "encodec-group-norm" else 1, 480)
    assert kernels.accelerate(fast).changed == {}
    assert list(fast.state_dict()) == list(model.state_dict())
    twin = copy.deepcopy(fast)
    assert set(report.changed) <= set(kernels.undo(fast))
    assert torch.equal(encoded(fast, x), encoded(model, x))
    assert kernels.undo(fast) == ()
    close(encoded(twin, x), encoded(model, x), "a copy")


def test_weights_that_change_and_gradients(transformers):
    model, fast, _ = both(transformers, "dac")
    x = torch.randn(1, 1, 200)
    for m in (model, fast):
        for p in m.parameters():
            p.mul_(1.25)
    close(encoded(fast, x), encoded(model, x), "weights changed in place")
    for m in (model, fast):
        m.to(torch.bfloat16)
    assert encoded(fast, x.bfloat16()).dtype == torch.bfloat16
    assert max_relative(encoded(fast, x.bfloat16()), encoded(model, x.bfloat16())) < 0.05
    fast.requires_grad_(True)
    with torch.enable_grad(), pytest.raises(BackendError, match="no gradients"):
        encoded(fast, x.bfloat16())


def test_other_models_are_refused(transformers):
    with pytest.raises(InputError, match="Conv1d has none of the codecs mimi, encodec"):
        kernels.accelerate(nn.Conv1d(1, 1, 1))
