"""The flow head's weights, from a checkpoint's tensors to one packed head."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...config.model_config import FlowConfig
from ...errors import CheckpointError
from ...ops.flow.packing import BLOCKS, THETA, TIME_CHANNELS
from ..declared import Build, Declared, Stacked
from ..layers import Linear
from ..rope import inverse_frequencies
from ..weights import Weights

# of a block: q, k and v make one matrix, then out, up and down
BLOCK_NAMES = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "mlp.ff.0.0", "mlp.ff.2")
# of a block: their places among the norms of a packed head; the last two only some heads have
_NORMS = ((0, "norm1"), (1, "norm2"), (3, "attn.q_norm"), (4, "attn.k_norm"))


def declare_flow_head(w: Weights, config: FlowConfig, cond_size: int | None = None) -> Declared[ops.PackedFlowHead]:
    """The tensors below `w`, each read into its place and packed there.

    cond_size: the condition's width where it is known; the weights must agree.
    """
    H, C, L, W, cond = _dims(w, config)
    cond = cond_size or cond
    D = H // config.num_heads
    w.check_buffer("rotary_embed.inv_freq", inverse_frequencies(THETA, D))
    time = [w.linear(f"t_embedder.time_mlp.{i}", H, k) for i, k in ((0, TIME_CHANNELS), (2, H))]
    shapes = (H, cond), (H, C), (L, 3 * H, H), (L, H, H), (L, W, H), (L, H, W), (C, H)
    roles = ["flow_block" if i in BLOCKS else "matrix" for i in range(len(shapes))]
    normed = w.has("blocks.0.attn.q_norm.weight") or w.has("blocks.0.attn.k_norm.weight")
    norm_shapes = (L, H), (L, H), (H,), *(((L, D), (L, D)) if normed else ())
    for shape, role in zip(shapes, roles):
        w.stores(shape, role, packed=True)
        w.stores(shape[:-1], "vector", packed=False)
    for shape in norm_shapes:
        w.stores(shape, "vector", packed=False)
    matrices, biases, norms = [[] for _ in shapes], [[] for _ in shapes], [[] for _ in norm_shapes]

    def place(view: Weights, name: str, i: int, at: tuple[int | slice, ...], rows: int) -> None:
        matrices[i].append(view.piece(f"{name}.weight", (rows, shapes[i][-1]), at))
        biases[i].append(view.piece(f"{name}.bias", (rows,), at))

    for name, i in zip(("c_embedder.cond_embedder", "x_embedder", "final_layer.linear"), (0, 1, 6)):
        place(w, name, i, (), shapes[i][0])
    norms[2].append(w.piece("final_layer.norm_final.weight", (H,)))
    for layer in range(L):
        block = w.sub(f"blocks.{layer}")
        for part, name in enumerate(BLOCK_NAMES[:3]):
            place(block, name, 2, (layer, slice(part * H, (part + 1) * H)), H)
        for i, name in enumerate(BLOCK_NAMES[3:], 3):
            place(block, name, i, (layer,), shapes[i][1])
        for i, name in _NORMS[: 4 if normed else 2]:
            norms[i].append(block.piece(f"{name}.weight", (H if i < 2 else D,), (layer,)))
    stored_as = tuple(f"{w.prefix}blocks.0.{name}.weight" for name in BLOCK_NAMES)
    return Build(
        ops.pack_flow_head,
        [Stacked(s, role, tuple(p), stored_as) for s, role, p in zip(shapes, roles, matrices)],
        [Stacked(s[:-1], "vector", tuple(p)) for s, p in zip(shapes, biases)],
        [Stacked(s, "vector", tuple(p)) for s, p in zip(norm_shapes, norms)],
        [Build(_pair, layer) for layer in time],
        heads=config.num_heads,
        rope_heads=config.pe_attn_head,
        format=w.formats.of("flow_block"),
        overwrite=True,
    )


def _pair(layer: Linear) -> tuple[ops.PackedLinear | Tensor, Tensor]:
    return layer.weight, layer.bias


def _dims(w: Weights, config: FlowConfig) -> tuple[int, int, int, int, int]:
    """H, C, L, W and Hc, from the weights; whatever the config says must agree."""
    what = w.what

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = w.shape(name)
        if found is None or len(found) != rank:
            state = "is missing" if found is None else f"must have {rank} dims, got {list(found)}"
            raise CheckpointError(f"{what}: {w.prefix}{name} {state}")
        return found

    def agree(key: str, stated: float | None, found: float) -> None:
        if stated is not None and stated != found:
            raise CheckpointError(f"{what}: ditar_config.{key} is {stated}, but the weights have {found}")

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
