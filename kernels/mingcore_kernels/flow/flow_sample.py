"""flow_sample: the whole flow sampler, E evaluations of a transformer, as a chain of launches.

Per evaluation and block five launches (flow_product.py has the products, flow_attention.py the
rest):
  1 qkv        norm, 3H rows of weights, bias
  2 attention  norm of q and k, RoPE, softmax over T tokens
  3 out        H rows, bias, residual
  4 up         norm, W rows, bias, GELU
  5 down       H rows, bias, residual
and two around them (embed.py, output.py): tokens in; final norm and product, guidance and step out. The
last block does 2 to 5 for the last P rows alone. The condition and the history are embedded once a
patch. The unconditional branch is B more rows of the same launches, and absent when not guided.

Cost of the released head (8 blocks of 12 H^2 weights, H 1024; 10 evaluations, 22 rows, bfloat16):
422 launches, 202 MB of weights an evaluation, 2.0 GB and 44 GFLOP a patch: 0.47 ms at 4.3 TB/s. The
weights do not stay in L2 (50 MB), so they are read evict_first. Predicted, not measured: per block
5.9 us of bytes, largely fetched while the launches before run, and five launches of about 1 us
handing over and 1 to 2 us from L2: 12 to 15 us, so 1.0 to 1.2 ms a patch in a graph. fp8 halves the
bytes, not the launches.

The rows' partial sums and all buffers are allocated here with torch.empty, so that a graph captures
them; nothing is read back, every number that may change (dt, guidance, noise scales) lies on the
device. Each sum has one order: the same bits every run. Fused further, attention would be made
again by every program of `out`, 135 KB and 16 dependent softmaxes each; not tried.
"""

import torch
import triton
from torch import Tensor

from ..lib.launch import on_device
from ..lib.target import device_of
from . import attention as flow_attention
from . import configs as flow_configs
from . import embed as flow_embed
from . import output as flow_output
from . import product as flow_product


def norm_type(operand: torch.dtype) -> torch.dtype:
    """The type of z, the residual stream times a norm's weights, not yet divided by its size."""
    return torch.float32 if operand == torch.float16 else operand  # fp16 could overflow


class _Launcher:
    """What all launches of one call share: the operands' type, the GPU, room for partial sums."""

    def __init__(self, like: Tensor, operand: torch.dtype, overlap: bool | None):
        self.like, self.operand = like, operand
        self.capability, self.processors = device_of(like.device.index)
        interpreted = not like.is_cuda and like.device.type != "meta"
        can = self.capability >= 90 and not interpreted
        self.overlap = can if overlap is None else overlap
        self.scratch: tuple[Tensor, Tensor] | None = None

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.like.new_empty(shape, dtype=dtype or torch.float32)

    def config(self, rows: int, w: Tensor, stored_bytes: int = 0) -> flow_configs.Config:
        """The tile of a product of `rows` rows, stored in so many bytes, with w [N, K]."""
        operand = self.operand.itemsize
        return flow_configs.choose(
            flow_configs.kind_of(operand, w.element_size(), stored_bytes or operand),
            rows=rows,
            columns=w.shape[0],
            depth=w.shape[1],
            processors=self.processors,
            capability=self.capability,
        )

    def reserve(self, products: list[tuple]) -> None:
        """Make room for the partial sums of products, each given as `config` takes it."""
        sums = counters = 0
        for rows, w, *stored in products:
            c = self.config(rows, w, *stored)
            if c.parts > 1:
                tiles = triton.cdiv(rows, c.block_m) * triton.cdiv(w.shape[0], c.block_n)
                sums = max(sums, tiles * c.parts * c.block_m * c.block_n)
                counters = max(counters, tiles)
        if counters:
            zeros = self.like.new_zeros(counters, dtype=torch.int32)
            self.scratch = self.empty(sums), zeros

    def product(self, x: Tensor, w: Tensor, bias: Tensor, out: Tensor, **more) -> None:
        config = self.config(x.shape[0], w, x.element_size())
        flow_product.launch(
            x,
            w,
            bias,
            out,
            config=config,
            operand=self.operand,
            overlap=self.overlap,
            scratch=self.scratch if config.parts > 1 else None,
            **more,
        )

    def tiles(self, rows: int, w: Tensor) -> int:
        """Partial sums of squares that a product onto the stream leaves per row."""
        return triton.cdiv(w.shape[0], self.config(rows, w).block_n)


def flow_sample(
    condition: Tensor,
    history: Tensor,
    noise: Tensor,
    guidance: Tensor,
    times: Tensor,
    dt: Tensor,
    noise_scale: Tensor,
    advance: list[bool],
    cos: Tensor,
    sin: Tensor,
    matrices: list[Tensor],
    biases: list[Tensor],
    norms: list[Tensor],
    scales: list[Tensor],
    heads: int,
    rope_heads: int,
    guided: bool,
    out: Tensor,
    overlap: bool | None = None,
) -> None:
    """Write the latents into out [B, P, C] float32.

    condition [B, Hc] and history [B, N, C] of any float type; noise [S or S + 1, B, P, C], guidance
    [B], times [E, H], dt [E], noise_scale [E, B], cos and sin [T, D / 2] float32; all contiguous.
    matrices: cond [H, Hc], x [H, C], qkv [L, 3H, H], out [L, H, H], up [L, W, H], down [L, H, W],
    final [C, H], rows dense; scales: none, or as many, those of the four blocks' matrices [L, N].
    overlap: launches may start before the one in front ends; None: from sm_90 on.
    """
    if out.numel() == 0:
        return
    with on_device(condition):
        _sample(
            condition,
            history,
            noise,
            guidance,
            times,
            dt,
            noise_scale,
            advance,
            cos,
            sin,
            matrices,
            biases,
            norms,
            scales,
            heads,
            rope_heads,
            guided,
            out,
            overlap,
        )


def _sample(
    condition,
    history,
    noise,
    guidance,
    times,
    dt,
    noise_scale,
    advance,
    cos,
    sin,
    matrices,
    biases,
    norms,
    scales,
    heads,
    rope_heads,
    guided,
    out,
    overlap,
):
    cond_w, x_w, final_w = matrices[0], matrices[1], matrices[6]
    (B, N, C), P = history.shape, out.shape[1]
    H, T = cond_w.shape[0], 1 + N + P
    R = 2 * B if guided else B
    operand = condition.dtype
    run = _Launcher(condition, operand, overlap)
    weights = matrices, biases, norms, scales
    blocks = _Blocks(run, *weights, (cos, sin), R, T, P, heads, rope_heads)
    stored = condition.element_size(), history.element_size()
    run.reserve([*blocks.products(), (B, cond_w, stored[0]), (B * N, x_w, stored[1])])

    first, past = run.empty(B, H), run.empty(B * N, H)
    run.product(condition, cond_w, biases[0], first)
    if N:
        run.product(history.view(B * N, C), x_w, biases[1], past)
    embed = flow_configs.embedding(operand.itemsize, R * T)
    final = flow_configs.velocity(operand.itemsize)
    sums = run.empty(triton.cdiv(H, embed.block_n), R * T)
    at = {"operand": operand, "overlap": run.overlap}

    states = [torch.empty_like(out) for _ in range(3 if len(advance) > 1 else 0)]
    base = current = noise[0]
    j = 0
    for e, forward in enumerate(advance):
        flow_embed.embed(
            current,
            x_w,
            biases[1],
            first,
            biases[0],
            times,
            e,
            past,
            norms[0][0],
            *blocks.stream,
            sums,
            T=T,
            N=N,
            config=embed,
            **at,
        )
        z, z_sums = blocks.run(sums)
        j += forward
        drawn = j if forward and j < noise.shape[0] else None
        free = [t for t in states if t is not base and t is not current]
        current = out if e + 1 == len(advance) else free[0]
        flow_output.step_out(
            z,
            final_w,
            biases[6],
            z_sums,
            base,
            noise,
            guidance,
            dt,
            noise_scale,
            current,
            e=e,
            j=drawn,
            config=final,
            **at,
        )
        base = current if forward else base


class _Blocks:
    """The L blocks, and the buffers that they use again and again."""

    def __init__(
        self,
        run: _Launcher,
        matrices: list[Tensor],
        biases: list[Tensor],
        norms: list[Tensor],
        scales: list[Tensor],
        rope: tuple[Tensor, Tensor],
        R: int,
        T: int,
        P: int,
        heads: int,
        rope_heads: int,
    ):
        self.launcher, self.R, self.T, self.P = run, R, T, P
        self.rope, self.heads, self.rope_heads = rope, heads, rope_heads
        self.matrices, self.biases, self.norms = matrices[2:6], biases[2:6], norms
        quantised = self.matrices[0].element_size() == 1
        self.scales = scales[2:6] if quantised else [None] * 4
        depth, W, H = self.matrices[2].shape
        self.depth, M = depth, R * T
        self.stream = run.empty(M, H), run.empty(M, H, dtype=norm_type(run.operand))
        self.other = run.empty(M, H)
        self.qkv, self.seen = (run.empty(M, n * H, dtype=run.operand) for n in (3, 1))
        self.hidden = run.empty(M, W, dtype=run.operand)
        self.sums = [
            run.empty(run.tiles(rows, w[0]), rows) for rows in (M, R * P) for w in (self.matrices[1], self.matrices[3])
        ]

    def products(self) -> list[tuple[int, Tensor, int]]:
        """Every product, for the buffers of partial sums."""
        stored = (self.stream[1].element_size(), 0) * 2  # z for qkv and up
        rows = self.R * self.T, self.R * self.P
        return [(M, w[0], n) for M in rows for w, n in zip(self.matrices, stored)]

    def run(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks, on `stream` with the sums of its squares -> z and sums of the last P rows."""
        y, z = self.stream
        rows = self.T
        for layer in range(self.depth):
            last = layer + 1 == self.depth
            rows = self.P if last else self.T
            norm = self.norms[2] if last else self.norms[0][layer + 1]
            sums = self._block(layer, y, z, sums, rows, norm)
        return z[: self.R * rows], sums

    def _block(self, layer: int, y: Tensor, z: Tensor, sums: Tensor, rows: int, next_norm: Tensor) -> Tensor:
        """One block from y (and z, sums) to y; of the last block `rows` of every T tokens."""
        run, M = self.launcher, self.R * rows
        qkv, out, up, down = (
            (w[layer], bias[layer], None if scale is None else scale[layer])
            for w, bias, scale in zip(self.matrices, self.biases, self.scales)
        )
        qk_norm = tuple(t[layer] for t in self.norms[3:5]) or None
        out_sums, down_sums = self.sums[2:] if rows != self.T else self.sums[:2]
        seen, hidden, other, z_out = self.seen[:M], self.hidden[:M], self.other[:M], z[:M]
        run.product(z, *qkv[:2], self.qkv, scale=qkv[2], sums=sums)
        flow_attention.launch(
            self.qkv,
            *self.rope,
            qk_norm,
            seen,
            T=self.T,
            rows=rows,
            heads=self.heads,
            rope_heads=self.rope_heads,
            overlap=run.overlap,
        )
        stream = (y, self.norms[1][layer], z_out, out_sums)
        run.product(seen, *out[:2], other, scale=out[2], stream=stream, rows=rows, T=self.T)
        run.product(z_out, *up[:2], hidden, scale=up[2], sums=out_sums, gelu=True)
        stream = (other, next_norm, z_out, down_sums)
        run.product(hidden, *down[:2], y[:M], scale=down[2], stream=stream, rows=rows, T=rows)
        return down_sums
