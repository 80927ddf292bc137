"""One patch through the AudioVAE's whole decoder at its real size: 24 layers, 896 wide, 5 frames.

On the CPU: ours in bfloat16 and in float32 weights against the reference structure in eager
float32, streamed with filled caches; the target of the design; one line of JSON last.
`python bench/bench_decoder.py [--compile] [--keep FOLDER]`; --compile adds the eager decoder
with its norms and MLPs by torch.compile (attention finds its cache by the number of the layer:
compiled, it would be a graph per layer, more than torch.compile makes of one function).
`--graph [--device cuda]`: by orders of backends, on a GPU in a CUDA graph (decoder_graph.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import decoder_graph
import reporting
from mingcore.model.vae import AudioVAE
from mingcore.testing.checkpoint_layout import tensor_shapes
from mingcore.testing.compare import relative_l2
from mingcore.testing.eager.audio import DecoderState, EagerAudio
from mingcore.testing.synthetic import model_config, random_tensor
from mingcore.testing.timing import interleaved

PATCH, WARM = decoder_graph.PATCH, 8
TARGET = 1.5
AGREE = {"ours fp32": 1e-3, "ours bf16": 5e-2}


def decoder_only(size: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """The AudioVAE's configuration and weights; what the decoder does not need is one layer."""
    config = model_config(size)
    audio = config["audio_tokenizer_config"]
    audio["enc_kwargs"]["backbone"]["num_hidden_layers"] = 1
    audio["semantic_module_kwargs"]["whisper_encoder"]["n_layer"] = 1
    shapes = {n: s for n, s in tensor_shapes(config).items() if n.startswith("audio.")}
    tensors = {n: random_tensor(n, s, 0, torch.float32) for n, s in shapes.items()}
    return audio, {name.removeprefix("audio."): t for name, t in tensors.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="real", help="real, mid or tiny")
    parser.add_argument("--graph", action="store_true", help="on tensors that stay, by backends")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="with --graph")
    parser.add_argument("--quick", action="store_true", help="with --graph: few rounds")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a baseline")
    parser.add_argument("--budget", type=float, default=20.0)
    parser.add_argument("--keep", type=Path, help="a folder to write the result to")
    args = parser.parse_args()
    if args.device == "cuda" and not args.graph:
        parser.error("--device cuda needs --graph")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_decoder: no GPU here that PyTorch can use")
    audio, tensors = decoder_only(args.size)
    if args.graph:
        return decoder_graph.main(tensors, audio, args)
    torch.manual_seed(1)
    latents = torch.randn(1, PATCH, 64)
    eager = EagerAudio(audio).eval()
    eager.load_state_dict(tensors, strict=False)
    calls, last = {}, {}

    def add(name, decode, state):
        def call():
            last[name] = decode(latents, state)

        calls[name] = call

    with torch.inference_mode():
        for name, dtype in (("ours bf16", torch.bfloat16), ("ours fp32", torch.float32)):
            vae = AudioVAE.from_state_dict(tensors, audio, dtype=dtype)
            add(name, lambda z, s, vae=vae: vae.decode(z, s, last=False)[0], vae.new_decoder_state(1))
        del tensors
        add("eager fp32", lambda z, s: eager.decoder.decode(z, s, False), DecoderState())
        if args.compile:
            compiled = EagerAudio(audio).eval()
            compiled.load_state_dict(eager.state_dict())
            for layer in compiled.decoder.decoder.layers:
                for part in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
                    part.compile()
            name = "torch.compile of norms and MLPs, fp32"
            add(name, lambda z, s: compiled.decoder.decode(z, s, False), DecoderState())
        for _ in range(WARM):  # the same number of patches, so that the results can be compared
            for call in calls.values():
                call()
        for name, limit in AGREE.items():
            error = relative_l2(last[name], last["eager fp32"])
            if not error <= limit:
                raise AssertionError(f"{name} differs from eager float32 by {error:.2e}")
        times = interleaved(calls, rounds=15, warmup=1, budget_s=args.budget)
    rows = []
    for name in calls:
        took = times.time_s(name)
        speedup = times.speedup(name, over="eager fp32")
        rows.append({"way": name, "ms": took.scaled(1e3).as_dict(), "faster": speedup.as_dict()})
    head = ("decoder", "ms", "p10", "p90", "x eager fp32")
    cells = [(r["way"], r["ms"]["median"], r["ms"]["p10"], r["ms"]["p90"], r["faster"]["median"]) for r in rows]
    print(reporting.table(head, cells))
    got = times.speedup("ours bf16", over="eager fp32").median
    met = got >= TARGET
    print(f"{'met ' if met else 'MISSED'} one patch in bf16 weights >= {TARGET} x eager: {got:.2f}")
    bar = {"bar": "one patch, bf16 weights: x eager fp32", "at_least": TARGET, "got": got, "met": met}
    out = reporting.result("decoder", size=args.size, rows=rows, bars=[bar], threads=torch.get_num_threads())
    if args.keep:
        reporting.keep(f"decoder-{args.size}", out, args.keep)
    print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
