"""The dry run with one layer of each kind records every launch that the full model makes with any size within the
limits."""

import json
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings")

from mingcore.aot import dry_run, targets, trace
from mingcore.ops import use_backend
from mingcore.runtime.params import ContextParams, FlowParams
from mingcore.runtime.state import BatchState
from mingcore.runtime.step import FlowGroup, advance, generate_patch
from mingcore.testing import synthetic

TARGET = targets.parse("sm_90a")[0]
TINY = dry_run.ModelSpec.of("mingcore/checkpoints/tiny")


def strays(subject, seen: trace.Trace, run, target=TARGET, **formats) -> list[str]:
    """The launches of `run(model)`, with all layers, that the dry run has not seen."""
    with trace.tracing(target) as found, use_backend(dry_run.BACKENDS), torch.no_grad():
        run(dry_run.build(subject, **{"dtype": None, "weights": None, **formats}))
    assert found.launches
    return sorted(said(launch) for launch in found.launches - seen.launches)


def said(launch: trace.Launch) -> str:
    return f"{launch.name} {json.loads(launch.specialization)['key']}"


def meta(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


def prompts(model, sizes, limit):
    H = model.config.llm.hidden_size
    for tokens in sizes:
        x = meta(1, tokens, H).to(model.llm.activation_dtype)
        state = model.llm.new_state(1, tokens + 3)
        hidden, state = model.llm(x, state)
        model.llm.logits(hidden[:, -1:])
        model.llm(x[:, :1], state)
    rows = BatchState.create(model, 3, tokens=limit, frames=320)
    model.llm(x, rows.rows(1, 2).llm)


def patches(model, n, slots):
    rows = BatchState.create(model, n, tokens=slots, frames=slots)
    frames, channels = model.config.patch_frames, model.config.latent_dim
    group = FlowGroup(FlowParams().schedule, True, meta(11, n, frames, channels))
    for _ in range(3):
        generate_patch(model, rows, [group])
        advance(model, rows)
        rows.count_step([True] * n)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_prompts_and_patches_of_any_size(monkeypatch, weights):
    parts = {name: dry_run._PARTS[name] for name in ("patches", "prompts")}
    monkeypatch.setattr(dry_run, "_PARTS", parts)
    limits = dry_run.Limits(rows=2, tokens=40)
    # Triton 3.10 changes the default, so every launch sets the option
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    seen = dry_run.launches(TINY, TARGET, limits, weights=weights)
    assert all(json.loads(s.specialization)["options"]["enable_fp_fusion"] for s in seen.launches)
    draw = random.Random(1)
    found = strays(TINY, seen, lambda m: prompts(m, draw.sample(range(1, 41), 6), 40), weights=weights)
    assert not found, "\n".join(found)
    found = strays(TINY, seen, lambda m: [patches(m, n, 64) for n in (1, 2)], weights=weights)
    assert not found, "\n".join(found)
    # sizes beyond the limits are missing, so this test can fail
    assert strays(TINY, seen, lambda m: prompts(m, [300], 300), weights=weights)


def in_context(model, options, voice, draw):
    """A voice is prefilled and patches follow, as of a request with a context option."""
    config, dtype = model.config, model.llm.activation_dtype
    state = options.state(model, voice + 5 * draw.randrange(1, 200))
    state.bounds[0] = draw.randrange(2) * 40  # after the cache of an earlier segment
    model.pool(model.vae.unify(meta(1, voice, config.latent_dim), state)[0])
    hidden = meta(1, config.llm.hidden_size).to(dtype)
    rows = BatchState.over(model, model.llm.new_state(1, 64), state, hidden=hidden)
    noise = meta(11, 1, config.patch_frames, config.latent_dim)
    for full in (True, False):
        generate_patch(model, rows, [FlowGroup(FlowParams().schedule, True, noise)], full=full)
        advance(model, rows, full=full)
        rows.count_step([True])


def contexts(model, draw, longest, count):
    for _ in range(count):
        options = ContextParams(
            seconds=draw.choice((None, 0.1, draw.uniform(0.1, 3), draw.uniform(1, 120))),
            format=draw.choice((None, "int8")),
        )
        in_context(model, options, 5 * draw.randrange(1, longest // 5 + 1), draw)


def test_contexts_that_depart_from_the_reference(monkeypatch):
    parts = {name: dry_run._PARTS[name] for name in ("patches", "attention", "contexts")}
    monkeypatch.setattr(dry_run, "BLOCK", 20)
    monkeypatch.setattr(dry_run, "_PARTS", parts)

    def run(model):
        contexts(model, random.Random(3), 20, 20)

    caches = ("_attention_decode", "_combine", "_kv_write")
    for complete in (True, False):
        seen = dry_run.launches(TINY, TARGET, dry_run.Limits(rows=1), dtype=torch.bfloat16)
        found = strays(TINY, seen, run, dtype=torch.bfloat16)
        found = [each for each in found if each.startswith(caches)]
        assert bool(found) != complete, "\n".join(found)
        parts.pop("contexts", None)


def sound(model, draw):
    vae, hop, channels = model.vae, model.config.hop_samples, model.config.latent_dim
    for _ in range(12):
        vae.encode(meta(1, draw.randrange(1, 300 * hop)))
        vae.decode(meta(1, draw.randrange(1, 300), channels))
        latents = meta(1, 5 * draw.randrange(1, 90), channels)
        model.pool(vae.unify(latents, vae.new_semantic_state(1, latents.shape[1] + 55))[0])
    for pieces in (1, 5, 7, 32, 40):
        state, heard = vae.new_decoder_state(1), vae.new_encoder_state(1)
        for last in (False, False, True):
            vae.decode(meta(1, draw.randrange(1, pieces + 1), channels), state, last)
            vae.encode_stream(meta(1, draw.randrange(1, pieces * hop)), heard, last)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_90a", "sm_80"])
def test_everything_of_a_deeper_model(tmp_path, arch):
    """Four layers of each kind, a dense one first, windows on the upper layers alone."""
    config = synthetic.model_config("tiny", first_k_dense_replace=2, num_hidden_layers=4)
    audio = config["audio_tokenizer_config"]
    for side in ("enc", "dec"):
        backbone = audio[f"{side}_kwargs"]["backbone"]
        backbone |= {"num_hidden_layers": 4, "max_window_layers": 2}
        backbone["_attn_implementation"] = "flash_attention_2"
    audio["semantic_module_kwargs"]["whisper_encoder"]["n_layer"] = 4
    folder = Path(tmp_path, "config.json")
    folder.write_text(json.dumps(config))
    subject, (target,) = dry_run.ModelSpec.of(folder), targets.parse(arch)
    seen = dry_run.launches(subject, target, dry_run.Limits(rows=4, tokens=200))
    draw = random.Random(2)
    for run in (
        lambda m: prompts(m, draw.sample(range(1, 201), 40), 200),
        lambda m: [patches(m, n, s) for n in (1, 2, 3, 4) for s in (64, 640, 1500, 5000)],
        lambda m: sound(m, draw),
        lambda m: contexts(m, draw, 600, 60),
    ):
        found = strays(subject, seen, run, target)
        assert not found, "\n".join(found)
