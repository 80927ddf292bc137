"""Every wrong argument: one error that names the op, the argument, what was expected and got."""

import re

import pytest
import torch

import mingcore.ops as ops
from mingcore import InputError

F = torch.float32


def ones(*shape, dtype=F):
    return torch.ones(shape, dtype=dtype)


def ids(*shape):
    return torch.zeros(shape, dtype=torch.int32)


def moe(x=(3, 8), gate_up=(4, 12, 8), down=(4, 8, 6), weights=(3, 2), chosen=(3, 2), **kwargs):
    experts = (ones(*gate_up), ones(*down))
    return ops.moe_mlp(ones(*x), experts, ones(*weights), ids(*chosen), **kwargs)


def prefill(q=(1, 4, 4, 8), k=(1, 4, 2, 8), v=None, **kwargs):
    return ops.attention_prefill(ones(*q), ones(*k), ones(*(v or k)), **kwargs)


def decode(q=(2, 1, 4, 8), k=(2, 6, 2, 8), positions=(2, 1), dtype=torch.int64, **kwargs):
    where = torch.zeros(positions, dtype=dtype)
    return ops.attention_decode(ones(*q), ones(*k), ones(*k), where, **kwargs)


def decode_int8(**scales):
    cache = ones(2, 6, 2, 8, dtype=torch.int8)
    scales = {"k_scale": ones(2, 6, 2, 1), "v_scale": ones(2, 6, 2, 1)} | scales
    where = torch.zeros(2, 1, dtype=torch.int64)
    return ops.attention_decode(ones(2, 1, 4, 8), cache, cache, where, **scales)


def write(cache=(2, 6, 2, 8), k=(2, 1, 2, 8), positions=(2, 1), dtype=F):
    where = torch.zeros(positions, dtype=torch.int64)
    return ops.kv_write_(ones(*cache), ones(*cache), ones(*k, dtype=dtype), ones(*k), where)


def step(x=(2, 5, 4), v=(2, 5, 4), guidance=2.0, dtype=F, **kwargs):
    return ops.flow_step(ones(*x, dtype=dtype), ones(*v), None, 0.1, guidance, **kwargs)


def overlap(frames=(1, 2, 16), window=(16,), hop=4, state=None, last=False):
    return ops.overlap_add(ones(*frames), ones(*window), hop, state, last)


def conv(x=(1, 4, 9), weight=(6, 4, 3), **kwargs):
    weight = ones(*weight) if isinstance(weight, tuple) else weight
    return ops.causal_conv1d(ones(*x), weight, **kwargs)


def head(hidden=(1, 2, 6), weight=(18, 6), bias=None, hop=4):
    bias = None if bias is None else ones(*bias)
    return ops.spectrum_head(ones(*hidden), ones(*weight), bias, ones(16), hop, None, False)


CASES = [
    (lambda: ops.linear(ones(2, 7), ones(5, 8)), "linear: x must be [..., K] with K = 8, got [2, 7]"),
    (lambda: ops.linear(ones(2, 8), ones(8)), "linear: weight must be [N, K], got [8]"),
    (lambda: ops.linear(ones(8, dtype=torch.int64), ones(5, 8)), "linear: x must be float32, bfloat16,"),
    (lambda: ops.linear(ones(8), ones(5, 8, dtype=torch.int8)), "linear: weight must be float32, bfloat"),
    (lambda: ops.linear(ones(2, 8), ones(5, 8), ones(6)), "linear: bias must be [N] = [5], got [6]"),
    (
        lambda: ops.linear(ones(2, 8), ones(5, 8), residual=ones(2, 8)),
        "linear: residual must be [..., N_out] = [2, 5], got [2, 8]",
    ),
    (
        lambda: ops.linear(ones(2, 8), ones(6, 8), activation="swiglu", residual=ones(2, 6)),
        "linear: residual must be [..., N_out] = [2, 3], got [2, 6]",
    ),
    (lambda: ops.linear(ones(8), ones(5, 8), activation="relu"), "linear: activation must be None or one"),
    (lambda: ops.linear(ones(8), ones(5, 8), activation="swiglu"), "linear: weight must be [2I, K] for"),
    (lambda: ops.linear(ones(2, 8), ones(5, 8).to("meta")), "linear: weight must be on cpu, where"),
    (lambda: ops.silu_mul(ones(2, 5)), "silu_mul: gate_up must be [..., 2I], got [2, 5]"),
    (lambda: ops.rms_norm(ones(2, 5), ones(4), 1e-6), "rms_norm: weight must be [H] = [5], got [4]"),
    (lambda: ops.rms_norm(ids(2, 5), ones(5), 1e-6), "rms_norm: x must be float32, bfloat16, float16"),
    (
        lambda: ops.add_rms_norm(ones(2, 5), ones(1, 5), ones(5), 1e-6),
        "add_rms_norm: residual must be [..., H] = [2, 5], got [1, 5]",
    ),
    (
        lambda: ops.add_rms_norm(ones(5), ones(5, dtype=torch.float64), ones(5), 1e-6),
        "add_rms_norm: residual must be float32, got float64",
    ),
    (lambda: ops.layer_norm(ones(5), ones(5), ones(4), 1e-5), "layer_norm: bias must be [H] = [5], got [4]"),
    (lambda: ops.rope(ones(2, 3, 8), ones(1, 3, 4), ones(1, 3, 4)), "rope: x must be [B, T, Hn, D], got"),
    (
        lambda: ops.rope(ones(2, 3, 1, 8), ones(3, 3, 4), ones(3, 3, 4)),
        "rope: cos must be [1 or 2, T, D/2] = [1 or 2, 3, 4], got [3, 3, 4]",
    ),
    (
        lambda: ops.rope(ones(2, 3, 1, 8), ones(1, 3, 4), ones(2, 3, 4)),
        "rope: sin must be [1 or B, T, D/2] = [1, 3, 4], got [2, 3, 4]",
    ),
    (
        lambda: ops.rope(ones(1, 1, 1, 8), *[ones(1, 1, 4, dtype=torch.float16)] * 2),
        "rope: cos must be float32 (or float64), got float16",
    ),
    (lambda: ops.rope(ones(1, 1, 1, 7), *[ones(1, 1, 3)] * 2), "rope: D must be even, got 7"),
    (lambda: ops.rope(ones(1, 1, 2, 8), *[ones(1, 1, 4)] * 2, rope_heads=3), "rope: rope_heads must be in 0..2, got 3"),
    (
        lambda: ops.qkv_rope(ones(1, 1, 30), *[ones(1, 1, 4)] * 2, 2, 1),
        "qkv_rope: qkv must be [B, T, 4 * D], got [1, 1, 30]",
    ),
    (
        lambda: ops.qkv_rope(ones(1, 1, 32), *[ones(1, 1, 4)] * 2, 3, 2),
        "qkv_rope: the number of query heads must be a multiple of 2 KV heads, got 3",
    ),
    (lambda: ops.route_topk(ones(2, 4), 5), "route_topk: top_k must be in 1..E = 1..4, got 5"),
    (lambda: ops.route_topk(ones(4), 1), "route_topk: logits must be [T, E], got [4]"),
    (lambda: ops.sort_by_expert(ones(2, 2), 3), "sort_by_expert: ids must be int32, got float32"),
    (lambda: ops.sort_by_expert(ids(2, 2), 0), "sort_by_expert: num_experts must be >= 1, got 0"),
    (lambda: ops.grouped_gemm(ones(3, 8), ones(2, 4, 8), ids(2)), "grouped_gemm: offsets must be [E+1] = [3], got [2]"),
    (
        lambda: ops.grouped_gemm(ones(3, 7), ones(2, 4, 8), ids(3)),
        "grouped_gemm: x must be [M, K] = [3, 8], got [3, 7]",
    ),
    (
        lambda: ops.moe_mlp(ones(1, 8), (ones(4, 12, 8), ones(4, 6, 8)), ones(1, 2), ids(1, 2)),
        "moe_mlp: down must be [E, H, I] = [4, 8, 6], got [4, 6, 8]",
    ),
    (lambda: moe(x=(3, 9)), "moe_mlp: x must be [T, H] with H = 8, got [3, 9]"),
    (lambda: moe(gate_up=(4, 11, 8)), "moe_mlp: gate_up must be [E, 2I, H], got [4, 11, 8]"),
    (lambda: moe(chosen=(2, 2)), "moe_mlp: ids must be [T, K] with T = 3, got [2, 2]"),
    (lambda: moe(weights=(3, 1)), "moe_mlp: weights must be [T, K] = [3, 2], got [3, 1]"),
    (lambda: moe(shared=(ones(10, 8), ones(8, 4))), "moe_mlp: shared[1] must be [H, Is] = [8, 5], got [8, 4]"),
    (
        lambda: ops.moe_mlp(ones(1, 8), (ones(4, 12, 8), ones(4, 8, 6)), ones(1, 2), torch.zeros(1, 2).long()),
        "moe_mlp: ids must be int32, got int64",
    ),
    (
        lambda: ops.moe_mlp(
            ones(1, 8),
            ops.pack_experts(ones(4, 12, 8), ones(4, 8, 6)),
            ones(1, 2),
            ids(1, 2),
            shared=(ones(10, 8), ones(8, 5)),
        ),
        "moe_mlp: shared must be None with PackedExperts, which hold it, got a pair",
    ),
    (
        lambda: ops.pack_experts(ones(4, 12, 8), ones(4, 8, 5)),
        "pack_experts: down must be [E, H, I] = [4, 8, 6], got [4, 8, 5]",
    ),
    (
        lambda: ops.pack_experts(ones(4, 12, 8), ones(4, 8, 6), format="int3"),
        "pack_experts: format must be one of fp32, bf16, fp16, fp64, int8, int8_dyn, fp8, got 'int3'",
    ),
    (lambda: prefill(k=(1, 5, 2, 8)), "attention_prefill: k must be as long as q when causal (T = 4), got 5"),
    (lambda: prefill(k=(1, 4, 3, 8)), "attention_prefill: the number of query heads must be a multiple of 3"),
    (lambda: prefill(k=(2, 4, 2, 8)), "attention_prefill: k must be [B, S, Hkv, D] = [1, 4, 2, 8], got [2,"),
    (lambda: prefill(v=(1, 4, 2, 9)), "attention_prefill: v must be [B, S, Hkv, D] = [1, 4, 2, 8], got [1,"),
    (lambda: prefill(window=0), "attention_prefill: window must be >= 1, got 0"),
    (lambda: prefill(causal=False, window=3), "attention_prefill: window must be None unless causal, got 3"),
    (lambda: decode(positions=(2, 2)), "attention_decode: positions must be [B, T] = [2, 1], got [2, 2]"),
    (lambda: decode(dtype=torch.int32), "attention_decode: positions must be int64, got int32"),
    (
        lambda: decode(k_scale=ones(2, 6, 2, 1), v_scale=ones(2, 6, 2, 1)),
        "attention_decode: k_cache must be int8, got float32",
    ),
    (lambda: decode_int8(v_scale=None), "attention_decode: v_scale must be given where"),
    (
        lambda: decode_int8(v_scale=ones(2, 6, 1, 1)),
        "attention_decode: v_scale must be [B, S, Hkv, 1] = [2, 6, 2, 1], got [2, 6, 1, 1]",
    ),
    (lambda: decode_int8(k_scale=ones(2, 6, 2, 1, dtype=torch.float16)), "attention_decode: k_scale must be float32"),
    (lambda: decode(q=(2, 0, 4, 8), positions=(2, 0)), "attention_decode: q must be of length >= 1, got 0"),
    (lambda: write(k=(2, 1, 2, 9)), "kv_write_: k must be [B, T, Hkv, D] = [2, 1, 2, 8], got [2, 1, 2, 9]"),
    (lambda: write(dtype=torch.bfloat16), "kv_write_: k must be float32, got bfloat16"),
    (lambda: write(positions=(1, 2)), "kv_write_: positions must be [B, T] = [2, 1], got [1, 2]"),
    (lambda: step(v=(2, 4, 5)), "flow_step: v_cond must be [B, P, C] = [2, 5, 4], got [2, 4, 5]"),
    (lambda: step(dtype=torch.bfloat16), "flow_step: x must be float32 (or float64), got bfloat16"),
    (lambda: step(guidance=ones(3)), "flow_step: guidance must be [B] = [2], got [3]"),
    (lambda: step(noise=ones(2, 5, 3)), "flow_step: noise must be [B, P, C] = [2, 5, 4], got [2, 5, 3]"),
    (lambda: ops.frame_embed(ones(2, 9), ones(3, 8), hop=4), "frame_embed: weight must be [H, hop] with hop"),
    (lambda: ops.frame_embed(ones(2, 0), ones(3, 8), hop=8), "frame_embed: the length of samples must be >="),
    (lambda: overlap(frames=(1, 2, 15)), "overlap_add: frames must be [B, T, F] = [1, 2, 16], got [1, 2, 15]"),
    (lambda: overlap(hop=17), "overlap_add: hop must be in 1..F = 1..16, got 17"),
    (lambda: overlap(last=ones(1)), "overlap_add: last must be bool, got float32"),
    (
        lambda: ops.overlap_add_(ones(1, 2, 16), ones(1, 9), ones(16), 4, overlap()[1], False),
        "overlap_add_: out must be [B, L] = [1, 8], got [1, 9]",
    ),
    (lambda: conv(x=(1, 3, 9)), "causal_conv1d: x must be [B, C_in, L] with C_in = 4, got [1, 3, 9]"),
    (lambda: conv(x=(4, 9)), "causal_conv1d: x must be [B, C_in, L], got [4, 9]"),
    (lambda: conv(weight=(6, 4)), "causal_conv1d: weight must be [C_out, C_in/groups, k], got [6, 4]"),
    (lambda: conv(groups=4), "causal_conv1d: weight must be [C_out, C_in/groups, k] for 4 groups, got [6, 4, 3]"),
    (lambda: conv(stride=0), "causal_conv1d: stride must be >= 1, got 0"),
    (lambda: conv(dilation=0), "causal_conv1d: dilation must be >= 1, got 0"),
    (lambda: conv(left_pad=5, dilation=2), "causal_conv1d: left_pad must be in 0..(k - 1) dilation = 0..4, got 5"),
    (lambda: conv(pad_mode="reflect"), "causal_conv1d: pad_mode must be 'zeros' or 'replicate', got 'reflect'"),
    (lambda: conv(bias=ones(5)), "causal_conv1d: bias must be [C_out] = [6], got [5]"),
    (lambda: conv(residual=ones(1, 6, 8)), "causal_conv1d: residual must be [B, C_out, T] = [1, 6, 9], got [1, 6, 8]"),
    (lambda: conv(activation="relu"), "causal_conv1d: activation must be None or one of ('silu', 'elu',"),
    (lambda: conv(activation="snake"), "causal_conv1d: snake must be (alpha, gain) for activation 'snake', got None"),
    (
        lambda: conv(activation_before="snake", snake_before=(ones(4), ones(6))),
        "causal_conv1d: gain of snake_before must be [C] = [4], got [6]",
    ),
    (
        lambda: conv(snake=(ones(6), ones(6))),
        "causal_conv1d: snake must be None where activation is None, got (alpha, gain)",
    ),
    (
        lambda: conv(state=ops.ConvState.start(1, 4, 3)),
        "causal_conv1d: state.context must be [B, C_in, W] = [1, 4, 2], got [1, 4, 3]",
    ),
    (
        lambda: conv(state=ops.ConvState.start(1, 4, 2, dtype=torch.bfloat16)),
        "causal_conv1d: state.context must be float32, got bfloat16",
    ),
    (lambda: conv(state=ones(1)), "causal_conv1d: state must be a ConvState or None, got Tensor"),
    (lambda: conv(valid=ones(1)), "causal_conv1d: valid must be int64, got float32"),
    (lambda: conv(valid=torch.ones(2).long()), "causal_conv1d: valid must be [B] = [1], got [2]"),
    (
        lambda: conv(last=torch.ones(2) > 0, valid=torch.ones(1).long()),
        "causal_conv1d: last must be [B] = [1], got [2]",
    ),
    (
        lambda: conv(weight=ops.pack_conv(ones(6, 4, 3)), stride=2),
        "causal_conv1d: stride must be 1, for which weight was packed, got 2",
    ),
    (
        lambda: conv(weight=ops.pack_conv(ones(4, 6, 3), transposed=True)),
        "causal_conv1d: weight must be packed for the ordinary convolution, got the other kind",
    ),
    (
        lambda: ops.causal_conv1d_(ones(1, 4, 9), ones(1, 6, 8), ones(6, 4, 3), state=ops.ConvState.start(1, 4, 2)),
        "causal_conv1d_: out must be [B, C_out, T] = [1, 6, 9], got [1, 6, 8]",
    ),
    (
        lambda: ops.causal_conv_transpose1d(ones(1, 4, 9), ones(4, 6, 3), stride=2, trim_right=2),
        "causal_conv_transpose1d: trim_right must be in 0..(k - 1) dilation + 1 - stride = 0..1",
    ),
    (
        lambda: ops.pack_conv(ones(6, 4, 3), groups=4),
        "pack_conv: weight must be not empty, its channels a multiple of 4 groups, got [6, 4, 3]",
    ),
    (lambda: ops.pack_conv(ones(6, 4)), "pack_conv: weight must be [C_out, C_in/groups, k]"),
    (
        lambda: overlap(state=ops.OverlapState.start(2, 16, 4)),
        "overlap_add: state.numerator must be [B, F - hop] = [1, 12], got [2, 12]",
    ),
    (lambda: head(weight=(17, 6)), "spectrum_head: weight must be [F + 2, H] = [18, 6], got [17, 6]"),
    (lambda: head(bias=(17,)), "spectrum_head: bias must be [F + 2] = [18], got [17]"),
]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message for _, message in CASES])
def test_bad_argument(call, message):
    with pytest.raises(InputError, match="^" + re.escape(message)):
        call()


def test_the_good_arguments_of_these_cases_are_good():
    for call in (moe, prefill, decode, step, overlap, conv, head):
        call()
    write()
