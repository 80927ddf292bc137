"""Codecs of transformers with our convolutions against their own, chunks of a stream and one shot.

Real sizes with random weights in float32; everything else in the model is the same code, so ratios
are of whole calls. Both are checked against each other before they are timed, and take turns. One
line of JSON last. `python bench/bench_codecs.py --keep FOLDER`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reporting
from mingcore.integrations import transformers as kernels
from mingcore.testing.compare import max_relative
from mingcore.testing.timing import interleaved, threads

CLOSE = 1e-5
SMALL = {
    "mimi": {
        "num_filters": 8,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "upsample_groups": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "intermediate_size": 64,
        "vector_quantization_hidden_dimension": 16,
        "codebook_dim": 16,
    },
    "encodec": {"num_filters": 4, "hidden_size": 32, "codebook_dim": 32},
    "dac": {"encoder_hidden_size": 8, "decoder_hidden_size": 64, "hidden_size": 128},
    "vibevoice": {"num_filters": 4, "depths": [1, 1, 1, 1, 1, 1, 1]},
}
Call = Callable[[nn.Module], Tensor]


def build(name: str, quick: bool) -> nn.Module:
    import transformers

    prefix = {"mimi": "Mimi", "encodec": "Encodec", "dac": "Dac"}.get(name, "VibeVoiceAcousticTokenizer")
    config = getattr(transformers, f"{prefix}Config")(**(SMALL[name] if quick else {}))
    torch.manual_seed(0)
    return getattr(transformers, f"{prefix}Model")(config).eval().requires_grad_(False)


def streamed(part: str, chunk: Tensor, cache: str, **options: Any) -> Call:
    """One more chunk of a stream that each model keeps for itself."""
    caches: dict[int, Any] = {}

    def call(model: nn.Module) -> Tensor:
        kept = {cache: caches.get(id(model))}
        out = getattr(model, part)(chunk, **kept, **options)
        caches[id(model)] = getattr(out, cache)
        return out[0]

    return call


def calls(name: str, model: nn.Module) -> Iterator[tuple[str, Call]]:
    """(what, a call): encoders and decoders, per chunk where the library streams them."""
    if name == "vibevoice":
        hop = 1
        for ratio in model.config.downsampling_ratios:
            hop *= ratio
        latent = torch.randn(1, model.config.hidden_size, 1)
        options = {"cache": "padding_cache", "use_cache": True}
        yield f"decoder, {hop} samples streamed", streamed("decoder", latent, **options)
        yield (f"encoder, {hop} samples streamed", streamed("encoder", torch.randn(1, 1, hop), **options))
    elif name == "mimi":
        # the convolutions alone: its transformer is not ours and would keep growing
        seanet = "encoder.encoder_seanet"
        samples = torch.randn(1, 1, 1920)
        yield "encoder's convolutions, 1920 samples", lambda m: m.get_submodule(seanet)(samples)
        latents = torch.randn(1, model.config.hidden_size, 2)
        other = "decoder.decoder_seanet"
        yield "decoder's convolutions, 1920 samples", lambda m: m.get_submodule(other)(latents)
    else:
        second = torch.randn(1, 1, 24000 if name == "encodec" else 16000)
        latents = model.encoder(second)
        yield "encoder, 1 s", lambda m: m.encoder(second)
        yield "decoder, 1 s", lambda m: m.decoder(latents)


def measured(name: str, quick: bool, budget_s: float) -> list[dict[str, Any]]:
    theirs = build(name, quick)
    ours = copy.deepcopy(theirs)
    report = kernels.accelerate(ours)
    rows = []
    for what, call in calls(name, theirs):
        for _ in range(3):  # chunks of a stream
            error = max_relative(call(ours), call(theirs))
            if not error <= CLOSE:
                raise AssertionError(f"{name}, {what}: differs by {error:.2e}")
        pair = {"theirs": lambda c=call: c(theirs), "ours": lambda c=call: c(ours)}
        took = interleaved(pair, rounds=3 if quick else 15, budget_s=budget_s, warmup=1)
        ratio = took.speedup("ours", over="theirs")
        rows.append(
            {
                "codec": name,
                "what": what,
                "changed": len(report.changed),
                "ours_ms": took.time_s("ours").median * 1e3,
                "theirs_ms": took.time_s("theirs").median * 1e3,
                "x": ratio.median,
                "x_p10": ratio.low,
                "x_p90": ratio.high,
                "error": error,
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", type=lambda text: text.split(","), default=list(SMALL))
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per case")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="small codecs: does it all run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the result goes")
    options = parser.parse_args(arguments)
    import transformers

    with threads(options.threads) as count, torch.inference_mode():
        rows = []
        for name in options.codecs:
            rows += measured(name, options.quick, options.budget)
            print(f"{name}: done", file=sys.stderr, flush=True)
    content = reporting.result("codecs", threads=count, transformers=transformers.__version__, rows=rows)
    columns = ("codec", "what", "theirs_ms", "ours_ms", "x", "x_p10", "x_p90", "error")
    print(reporting.table(columns, [[row[c] for c in columns] for row in rows]))
    if options.keep:
        print(f"kept in {reporting.keep('codecs-cpu', content, options.keep)}")
    reporting.last_line(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
