"""The eager baseline against the golden tensors: an independent check of docs/model.md."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mingcore.testing.eager import EagerMing
from mingcore.testing.eager.audio import DecoderState
from mingcore.testing.eager.flow import time_grid

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LIMIT = 2e-5


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def ming():
    return EagerMing.load(GOLDEN)


def variant(window: str | None = None, **llm):
    """The golden model with another meaning of the window or other LLM options."""
    config = json.loads((GOLDEN / "config.json").read_text())
    config["llm_config"].update(llm)
    if window is not None:
        for part in ("enc_kwargs", "dec_kwargs"):
            backbone = config["audio_tokenizer_config"][part]["backbone"]
            backbone["use_sliding_window"] = window != "full"
            backbone["_attn_implementation"] = "flash_attention_2" if window == "fa2" else "sdpa"
    return EagerMing.from_state_dict(config, load_file(GOLDEN / "model.safetensors"))


def golden(name: str):
    return load_file(GOLDEN / f"{name}.safetensors")


def tape(tensors, prefix: str):
    """Recorded noise in draw order; [B, 64, P] draws are transposed."""
    names = sorted(k for k in tensors if k.startswith(f"{prefix}.tape."))
    return [tensors[k].transpose(1, 2) if k.endswith("randn") else tensors[k] for k in names]


def relative(a, b) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()


def close(a, b, limit=LIMIT):
    assert relative(a, b) <= limit


@pytest.mark.parametrize("case", ["text", "amask", "aimask", "pos3d", "b2", "rope1d"])
def test_llm_logits_and_cache(ming, case):
    g = golden("d_llm")
    model = variant(rope_scaling=None).model if case == "rope1d" else ming.model
    ids = g["ids_b2"] if case == "b2" else g["ids"]
    masks = {}
    if case in ("amask", "aimask"):
        masks["audio_mask"] = g["audio_mask"]
    if case == "aimask":
        masks["image_mask"] = g["image_mask"]
    if case == "pos3d":
        masks["positions"] = g["pos3d"]
    embed, cache = model.model.word_embeddings, {}
    hidden, logits = model(embed(ids), cache, **masks)
    close(logits, g[f"{case}.prefill.logits"])
    close(hidden, g[f"{case}.prefill.hidden2"])
    for i in range(4):
        hidden, logits = model(embed(g[f"{case}.decode.ids"][:, i : i + 1]), cache)
        close(logits[:, 0], g[f"{case}.decode.logits"][:, i])
        close(hidden[:, 0], g[f"{case}.decode.hidden"][2, :, i])
    for layer in range(2):
        close(cache[layer][0], g[f"{case}.cache.k{layer}"])
        close(cache[layer][1], g[f"{case}.cache.v{layer}"])


def test_llm_left_padding(ming):
    g = golden("d_llm")
    mask = g["leftpad.attention_mask"]
    embeds = ming.model.model.word_embeddings(g["ids_b2"])
    _, logits = ming.model(embeds, {}, positions=g["leftpad.position_ids"], attention_mask=mask)
    close(logits[mask.bool()], g["leftpad.logits"][mask.bool()])


def test_llm_norm_head():
    g = golden("d_llm")
    model = variant(norm_head=True).model
    _, logits = model(model.model.word_embeddings(g["ids"]), {})
    close(logits, g["normhead.logits"])


def test_moe_block(ming):
    g = golden("e_moe")
    moe = ming.model.model.layers[1].mlp
    x, audio, image = g["x"], g["audio_mask"], g["image_mask"]
    masks = {"none": (None, None), "audio": (audio, None), "image": (None, image), "both": (audio, image)}
    for name, pair in masks.items():
        close(moe(x, *pair), g[f"{name}.out"])
    for name in ("gate", "audio_gate", "image_gate"):
        weights, ids = moe.route(getattr(moe, name)(x.flatten(0, 1)))
        assert torch.equal(ids, g[f"{name}.topk_idx"])
        close(weights, g[f"{name}.topk_weight"])
    close(moe(x[:1, :1]), g["one_token.out"])
    close(variant(norm_topk_prob=False).model.model.layers[1].mlp(x), g["norm_topk_prob_False.out"])


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 7, 8, 10, 12, 16, 32])
def test_time_grids(steps):
    g = golden("f_flow")
    assert torch.equal(time_grid(steps, sway=None), g[f"timesteps.{steps}"])
    close(time_grid(steps), g[f"timesteps_sway.{steps}"], 1e-6)


def test_flow_network(ming):
    g = golden("f_flow")
    flow = ming.flow
    close(flow.t_embedder(g["t"]), g["t_embed"])
    angles = flow.rotary_embed(11)
    close(flow.blocks[0](g["dit.block0.in"], angles), g["dit.block0"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("zero.steps10.cfg2", {}),
        ("zero.steps5.cfg2", {"steps": 5}),
        ("zero.steps8.cfg2", {"steps": 8}),
        ("zero.steps16.cfg2", {"steps": 16}),
        ("zero.steps10.cfg3.5", {"guidance": 3.5}),
        ("zero.steps10.cfg2.noepss", {"epss": False}),
        ("zero.steps10.cfg2.nosway", {"sway": None}),
        ("zero.steps10.cfg2.B2", {}),
        ("gauss.steps10.cfg2", {}),
        ("gauss.steps5.cfg2", {"steps": 5}),
        ("gauss.steps8.cfg2", {"steps": 8}),
        ("gauss.steps16.cfg2", {"steps": 16}),
    ],
)
def test_flow_sampler(ming, name, options):
    g = golden("f_flow")
    steps = options.get("steps", 10)
    B = 2 if name.endswith("B2") else 1
    start = (g["noise_b2"] if B == 2 else g["noise"]).transpose(1, 2)
    noise = torch.zeros(steps + 1, B, 5, 64)
    noise[0] = start
    temperature = 0.0
    if name.startswith("gauss"):
        temperature = 1.5
        noise[1:] = torch.stack(tape(g, f"gauss.steps{steps}"))
    out = ming.flow.sample(g["c"][:B, 0], g["hist"][:B], noise, temperature=temperature, **options)
    close(out, g[f"{name}.out"])


def test_pooling_and_stop_head(ming):
    g = golden("f_flow")
    close(ming.pool(g["linear_pooling.in"]), g["linear_pooling.out"])


@pytest.mark.parametrize("samples", ["n16037", "n16000"])
@pytest.mark.parametrize("window", ["sdpa", "fa2", "full"])
def test_encode(samples, window):
    g = golden("a_encode")
    mean, std = variant(window).audio.encoder(g[f"{samples}.waveform"])
    close(mean, g[f"{samples}.{window}.mean"])
    close(std, g[f"{samples}.{window}.std"])


def test_unified_embedding(ming):
    g = golden("b_unified")
    decoder = ming.audio.decoder
    close(decoder.unify(g["latent"], {}), g["oneshot"])
    close(decoder.unify(g["latent_b2"], {}), g["oneshot_b2"])
    cache = {}
    chunks = [decoder.unify(part, cache) for part in g["latent"].split(5, dim=1)]
    close(torch.cat(chunks, dim=1), g["chunked5"])
    close(cache[1][0], g["cache.k1"])


@pytest.mark.parametrize("window", ["sdpa", "fa2", "full"])
def test_decode(window):
    g = golden("c_decode")
    decoder = variant(window).audio.decoder
    close(decoder.decode(g["latent"], None, True), g[f"{window}.oneshot"][:, 0])
    for name, sizes in (("stream", [5] * 8), ("stream_irregular_3_7_2_8_rest", [3, 7, 2, 8, 20])):
        if f"{window}.{name}" not in g:
            continue
        state, parts = DecoderState(), g["latent"].split(sizes, dim=1)
        samples = [decoder.decode(p, state, i == len(parts) - 1) for i, p in enumerate(parts)]
        close(torch.cat(samples, dim=1), g[f"{window}.{name}"][:, 0])


@pytest.mark.parametrize(("run", "patches", "bias"), [("six", 6, None), ("stop", 40, 50.0), ("nostop", 25, -50.0)])
def test_text_to_speech(run, patches, bias):
    g = golden("g_tts")
    ming = variant()
    if bias is not None:
        ming.stop_head.bias.copy_(torch.tensor([-bias, bias]))
    noise = tape(g, run)
    ids = g["input_ids"] if run != "nostop" else nostop_ids(g["input_ids"])
    voice = g["prompt_latents"][:, :15]
    loop = ming.tts(ids, voice, ids == 501, lambda n: torch.stack(noise[11 * n : 11 * n + 11]), max_patches=patches)
    out = list(loop)
    count = g[f"{run}.latents"].shape[0]
    assert len(out) == count
    close(torch.stack([p.latents for p in out]), g[f"{run}.latents"])
    close(torch.stack([p.history for p in out]), g[f"{run}.history"])
    close(torch.cat([p.stop_probability for p in out]), g[f"{run}.stop_prob"])
    close(torch.stack([p.condition for p in out])[:, :, None], g[f"{run}.z_diff"])
    official = g.get(f"{run}.wave_stream_official.sdpa")
    close(torch.cat([p.samples for p in out], dim=1), official[:, 0])
    assert [p.is_last for p in out] == g[f"{run}.yielded_last"].bool().tolist()


def nostop_ids(ids):
    """`nostop` speaks "abcd" in place of "hello abc": the stub tokenizer's ids."""
    stub = [(7 * ord(c) + 10) % 480 for c in "hello abc"]
    text = ids.tolist()
    start = next(i for i in range(len(text)) if text[i : i + len(stub)] == stub)
    new = [(7 * ord(c) + 10) % 480 for c in "abcd"]
    return torch.tensor(text[:start] + new + text[start + len(stub) :])
