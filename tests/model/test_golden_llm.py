"""The language model and its experts against the reference: every key of d_llm and e_moe."""

import copy
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from mingcore import ops
from mingcore.model.headers import read_headers
from mingcore.model.layers import SwiGLU
from mingcore.model.sources import DictTensors
from mingcore.model.weights import assemble

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = ("text", "amask", "aimask", "pos3d", "b2", "rope1d")
INPUTS = {
    "d_llm": (
        "ids",
        "ids_b2",
        "audio_mask",
        "image_mask",
        "pos3d",
        "*.decode.ids",
        "leftpad.attention_mask",
        "leftpad.position_ids",
        "*rope_deltas",  # the reference's own bookkeeping: zero
    ),
    "e_moe": ("x", "audio_mask", "image_mask"),
}


def outputs(name):
    keys = read_headers(GOLDEN / f"{name}.safetensors")
    return [k for k in keys if not any(fnmatch(k, pattern) for pattern in INPUTS[name])]


def run_variant(name, llm, given):
    """Prefill, then the four decode steps on given ids -> all keys of one variant."""
    ids = given["ids_b2" if name == "b2" else "ids"]
    masks = {
        "audio_mask": given["audio_mask"] if name in ("amask", "aimask") else None,
        "image_mask": given["image_mask"] if name == "aimask" else None,
        "positions": given["pos3d"] if name == "pos3d" else None,
    }
    ours, steps = {}, given[f"{name}.decode.ids"]
    T = ids.shape[1]
    state = llm.new_state(ids.shape[0], T + steps.shape[1])

    def step(ids, **kw):
        trace, T = [], ids.shape[1]
        caches, fresh = state.reserve(T), state.max_length == 0
        out = llm.forward(llm.embed(ids), caches, state.lengths, trace=trace, fresh=fresh, **kw)
        state.advance(T)
        return [*trace, out], llm.logits(out)

    hidden, ours[f"{name}.prefill.logits"] = step(ids, **masks)
    for i, h in enumerate(hidden):
        ours[f"{name}.prefill.hidden{i}"] = h
    decoded = [step(steps[:, i : i + 1]) for i in range(steps.shape[1])]
    ours[f"{name}.decode.logits"] = torch.cat([logits for _, logits in decoded], dim=1)
    ours[f"{name}.decode.hidden"] = torch.cat([torch.stack(h) for h, _ in decoded], dim=2)
    length = T + steps.shape[1]
    assert state.lengths.tolist() == [length] * ids.shape[0]
    for layer in range(2):
        ours[f"{name}.cache.k{layer}"] = state.keys[layer][:, :length].transpose(1, 2)
        ours[f"{name}.cache.v{layer}"] = state.values[layer][:, :length].transpose(1, 2)
    return ours


@pytest.fixture(scope="module")
def llm_outputs(golden, golden_model, variant):
    given, llm = golden("d_llm"), golden_model.llm
    plain_rope = variant({"rope_scaling": None}).llm
    ours = {}
    for name in VARIANTS:
        ours.update(run_variant(name, plain_rope if name == "rope1d" else llm, given))
    places = torch.arange(given["ids"].shape[1]).expand(3, 1, -1)
    ours["position_ids"] = places
    explicit, _ = llm(llm.embed(given["ids"]), positions=places)
    assert torch.equal(llm.logits(explicit), ours["text.prefill.logits"])

    mask = given["leftpad.attention_mask"]
    hidden, _ = llm(llm.embed(given["ids_b2"]), attention_mask=mask, positions=given["leftpad.position_ids"])
    # what comes out in place of padding has no meaning: the golden values stand in for it
    logits = llm.logits(hidden)
    ours["leftpad.logits"] = torch.where(mask[..., None] > 0, logits, given["leftpad.logits"])

    normed = variant({"norm_head": True}).llm
    ours["normhead.logits"] = normed.logits(normed(normed.embed(given["ids"]))[0])
    return ours


@pytest.mark.parametrize("key", outputs("d_llm"))
def test_llm(key, llm_outputs, golden, assert_golden):
    assert_golden(key, llm_outputs[key], golden("d_llm")[key])


def test_leftpad_has_rows_to_compare(golden):
    mask = golden("d_llm")["leftpad.attention_mask"]
    assert mask.sum() > 9 and (mask == 0).any()


def one_router(mlp, x, name):
    """logits, ids and weights of one router on all tokens; golden lists ids as int64."""
    every = torch.ones(x.shape[0], 1, dtype=torch.bool)
    mask = {name.replace("gate", "mask"): every} if name != "gate" else {}
    weights, ids = mlp.route(x, **mask)
    logits = mlp.logits(x, mask.get("audio_mask"), mask.get("image_mask"))
    return {"logits": logits.float(), "topk_idx": ids, "topk_weight": weights}


@pytest.fixture(scope="module")
def moe_outputs(golden, golden_model, part, variant):
    given, mlp = golden("e_moe"), golden_model.llm.layers[1].mlp
    x = given["x"]
    B, T, H = x.shape
    flat = x.view(B * T, H)
    audio, image = (given[f"{m}_mask"].view(-1, 1) > 0 for m in ("audio", "image"))
    ours = {}
    for name, masks in {
        "none": (None, None),
        "audio": (audio, None),
        "image": (None, image),
        "both": (audio, image),
    }.items():
        ours[f"{name}.out"] = mlp(x, *masks)
        ours[f"{name}.router_logits"] = mlp.logits(flat, *masks).view(B, T, -1)
        ours[f"{name}.topk_idx"] = mlp.route(flat, *masks)[1].view(B, T, -1)
    for gate in ("gate", "audio_gate", "image_gate"):
        for what, value in one_router(mlp, flat, gate).items():
            ours[f"{gate}.{what}"] = value
    ours["one_token.out"] = mlp(x[:1, :1])
    plain = copy.copy(mlp)
    plain.renormalize = False
    ours["norm_topk_prob_False.out"] = plain(x)

    weights = part("model.model.layers.1.mlp")
    for key, name in (("expert3_out", "experts.3."), ("shared_out", "shared_experts.")):
        own = {k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)}
        expert = assemble(DictTensors(own, name), lambda w: SwiGLU.declare(w, H, 96), dtype=torch.float32)
        ours[key] = expert(x)

    narrow = variant(dtype=torch.bfloat16, activation_dtype=torch.bfloat16).llm.layers[1].mlp
    for what, value in one_router(narrow, flat.bfloat16(), "gate").items():
        ours[f"gate_bf16.{what}"] = value
    ours["block_bf16.out"] = narrow(x.bfloat16()).float()
    return ours


@pytest.mark.parametrize("key", outputs("e_moe"))
def test_moe(key, moe_outputs, golden, assert_golden):
    # bfloat16 keeps 8 bits: sums in another order differ by a unit in the last place
    tolerance = 2**-7 if "bf16" in key else 2e-5
    assert_golden(key, moe_outputs[key], golden("e_moe")[key], tolerance)


def test_raw_experts_give_the_same(golden, golden_model, part):
    """`ops.moe_mlp` on the unpacked pair is what the packed block computes."""
    x, mlp = golden("e_moe")["x"].view(-1, 256), golden_model.llm.layers[1].mlp
    weights = part("model.model.layers.1.mlp")

    def pair(name):
        gate, up, down = (weights[f"{name}.{p}_proj.weight"] for p in ("gate", "up", "down"))
        return torch.cat((gate, up)), down

    experts = tuple(torch.stack(t) for t in zip(*(pair(f"experts.{e}") for e in range(8))))
    raw = ops.moe_mlp(x, experts, *mlp.route(x), shared=pair("shared_experts"))
    torch.testing.assert_close(raw, mlp(x[None])[0])
