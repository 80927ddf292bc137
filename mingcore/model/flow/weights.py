"""The flow head's weights, from a checkpoint's tensors to one packed head."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...config.model_config import FlowConfig
from ...errors import CheckpointError
from ...ops._core.packing import QUANTISED, format_of
from ...ops.flow.packing import BLOCKS, THETA, TIME_CHANNELS
from ..rope import inverse_frequencies
from ..weights import Weights

# of a block: q, k and v make one matrix, then out, up and down
BLOCK_NAMES = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "mlp.ff.0.0", "mlp.ff.2")


def read_flow_head(w: Weights, config: FlowConfig, cond_size: int | None = None) -> ops.PackedFlowHead | None:
    """The tensors below `w`, each read into its place and packed there; None when `w` is dry.

    cond_size: the condition's width where it is known; the weights must agree.
    """
    H, C, L, W, cond = _dims(w, config)
    cond = cond_size or cond
    D = H // config.num_heads
    w.check_buffer("rotary_embed.inv_freq", inverse_frequencies(THETA, D))
    time = [w.linear(f"t_embedder.time_mlp.{i}", H, k) for i, k in ((0, TIME_CHANNELS), (2, H))]
    shapes = (H, cond), (H, C), (L, 3 * H, H), (L, H, H), (L, W, H), (L, H, W), (C, H)
    format = w.formats.flow
    quantised = format in QUANTISED
    blocks = w.sub("blocks.0")
    stored = blocks.stored_dtype(*(f"{name}.weight" for name in BLOCK_NAMES)) if quantised else None
    matrices = [w.staged(*s, dtype=stored if i in BLOCKS else None) for i, s in enumerate(shapes)]
    for i, shape in enumerate(shapes):
        w.keeps_packed(shape, format if i in BLOCKS else format_of(w.dtype))
    biases = [w.new_vector(*shape[:-1]) for shape in shapes]

    def fill(view: Weights, name: str, weight: Tensor, bias: Tensor) -> None:
        view.fill(f"{name}.weight", weight)
        view.fill(f"{name}.bias", bias)

    small = ("c_embedder.cond_embedder", "x_embedder", "final_layer.linear")
    for name, i in zip(small, (0, 1, 6)):
        fill(w, name, matrices[i], biases[i])
    normed = w.has("blocks.0.attn.q_norm.weight") or w.has("blocks.0.attn.k_norm.weight")
    norms = [w.new_vector(L, H), w.new_vector(L, H), w.new_vector(H)]
    norms += [w.new_vector(L, D), w.new_vector(L, D)] if normed else []
    w.fill("final_layer.norm_final.weight", norms[2])
    for i in range(L):
        block = w.sub(f"blocks.{i}")
        weights, vectors = matrices[2][i].split(H), biases[2][i].split(H)
        weights += matrices[3][i], matrices[4][i], matrices[5][i]
        vectors += biases[3][i], biases[4][i], biases[5][i]
        for name, weight, bias in zip(BLOCK_NAMES, weights, vectors, strict=True):
            fill(block, name, weight, bias)
        if quantised:
            block.finite(*(f"{name}.weight" for name in BLOCK_NAMES), format=format)
        block.fill("norm1.weight", norms[0][i])
        block.fill("norm2.weight", norms[1][i])
        if normed:
            block.fill("attn.q_norm.weight", norms[3][i])
            block.fill("attn.k_norm.weight", norms[4][i])
    if w.dry:
        return None
    return ops.pack_flow_head(
        matrices,
        biases,
        norms,
        [(layer.weight, layer.bias) for layer in time],
        heads=config.num_heads,
        rope_heads=config.pe_attn_head,
        format=format,
        overwrite=True,
    )


def _dims(w: Weights, config: FlowConfig) -> tuple[int, int, int, int, int]:
    """H, C, L, W and Hc, from the weights; whatever the config says must agree."""
    what = w.source.what

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = w.shape(name)
        if found is None or len(found) != rank:
            state = "is missing" if found is None else f"must have {rank} dims, got {list(found)}"
            raise CheckpointError(f"{what}: {w.prefix}{name} {state}")
        return found

    def agree(key: str, said: float | None, found: float) -> None:
        if said is not None and said != found:
            raise CheckpointError(f"{what}: ditar_config.{key} is {said}, but the weights have {found}")

    H, C = shape("x_embedder.weight", 2)
    (pairs,) = shape("rotary_embed.inv_freq", 1)
    if 2 * pairs * config.num_heads != H:
        raise CheckpointError(
            f"{what}: num_heads is {config.num_heads}, but width {H} and {pairs} inverse "
            f"frequencies make {H / (2 * pairs):g} heads of {2 * pairs}"
        )
    width = shape("blocks.0.mlp.ff.0.0.weight", 2)[0]
    depth = w.count("blocks")
    agree("hidden_size", config.hidden_size, H)
    agree("depth", config.depth, depth)
    if config.mlp_ratio is not None and int(H * config.mlp_ratio) != width:
        agree("mlp_ratio", config.mlp_ratio, width / H)
    agree("qk_norm", config.qk_norm, w.has("blocks.0.attn.q_norm.weight"))
    return H, C, depth, width, shape("c_embedder.cond_embedder.weight", 2)[1]
