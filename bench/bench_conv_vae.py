"""Whole convolutional VAEs at their real size, random weights: a patch streamed, seconds one-shot.

Against the same networks op by op in eager float32, weight norm folded. Eager keeps no state: its
patch is a one-shot of the same length, which is less work than a stream's. Last, a line of JSON.
`python bench/bench_conv_vae.py [--seconds 2] [--keep FOLDER]`
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

import reporting
from mingcore.model.vae.conv import VibeVoiceVAE, VoxCPMVAE
from mingcore.testing.conv_checkpoints import REAL_VIBEVOICE, REAL_VOXCPM, vibevoice_tensors, voxcpm_tensors
from mingcore.testing.eager import conv_vae as eager
from mingcore.testing.timing import interleaved

PATCH = {"voxcpm": 4, "vibevoice": 1}  # latents


def calls(codec: str, seconds: float):
    """name -> (ours, eager, seconds of sound) for every direction and length."""
    vox = codec == "voxcpm"
    config = REAL_VOXCPM if vox else REAL_VIBEVOICE
    tensors = voxcpm_tensors(config) if vox else vibevoice_tensors(config)
    vae = (VoxCPMVAE if vox else VibeVoiceVAE).from_state_dict(tensors, config)
    for name in [name for name in tensors if name.endswith("weight_v")]:
        stem = name.removesuffix("_v")
        tensors[stem] = torch._weight_norm(tensors.pop(name), tensors.pop(f"{stem}_g"), 0)
    encode = eager.voxcpm_encode if vox else eager.vibevoice_encode
    decode = eager.voxcpm_decode if vox else eager.vibevoice_decode
    for what, T in (("patch", PATCH[codec]), ("one-shot", round(seconds * vae.latent_rate))):
        z, x = torch.randn(1, T, vae.latent_dim), torch.randn(1, T * vae.hop_samples)
        wide, length = (x if vox else x.unsqueeze(1)), T / vae.latent_rate
        if what == "patch":
            into, out = vae.new_encoder_state(1), vae.new_decoder_state(1)
            ours, back = partial(vae.decode, z, out, last=False), partial(vae.encode_stream, x, into)
        else:
            ours, back = partial(vae.decode, z), partial(vae.encode, x)
        yield f"decode {what}", ours, lambda z=z: decode(tensors, config, z), length
        yield f"encode {what}", back, lambda x=wide: encode(tensors, config, x), length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", choices=PATCH, help="one of them only")
    parser.add_argument("--seconds", type=float, default=2.0, help="of sound, one-shot")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for each comparison")
    parser.add_argument("--keep", type=Path, help="a folder to write the result to")
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        for codec in [args.codec] if args.codec else PATCH:
            for what, ours, plain, seconds in calls(codec, args.seconds):
                times = interleaved({"ours": ours, "eager": plain}, rounds=15, warmup=1, budget_s=args.budget)
                took, faster = times.time_s("ours"), times.speedup("ours", over="eager")
                rows.append(
                    {
                        "codec": codec,
                        "what": what,
                        "ms": took.scaled(1e3).as_dict(),
                        "eager_ms": times.time_s("eager").scaled(1e3).as_dict(),
                        "real_time_factor": took.median / seconds,
                        "faster": faster.as_dict(),
                    }
                )
    head = ("codec", "what", "ms", "p10", "p90", "real-time factor", "x eager")
    cells = [
        (
            r["codec"],
            r["what"],
            r["ms"]["median"],
            r["ms"]["p10"],
            r["ms"]["p90"],
            r["real_time_factor"],
            r["faster"]["median"],
        )
        for r in rows
    ]
    print(reporting.table(head, cells))
    out = reporting.result("conv_vae", rows=rows, threads=torch.get_num_threads())
    if args.keep:
        reporting.keep("conv_vae-real", out, args.keep)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
