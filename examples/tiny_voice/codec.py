"""Stage 1: the AudioVAE.

    python examples/tiny_voice/codec.py CORPUS OUT [--steps N] [--resume] [--start FOLDER]

Losses: log-magnitude STFTs of three sizes, mel, waveform, and a small pull of the latents to unit
variance. The posterior's deviation is fixed (a sigma-VAE), so that the decoder learns to tolerate small
errors of the flow head. Writes OUT/codec.pt every two minutes, and OUT/codec.json,
the losses. 6000 steps take about 20 minutes on two idle cores.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from corpus import RATE, Corpus
from loop import Run, only, options, start_from
from settings import new_model
from torch import Tensor

DEVIATION = 0.25  # of the posterior, in units of the latents'
FRAMES = 64  # of one training excerpt
HOP = 320
WEIGHTS = {"stft": 1.0, "converge": 0.5, "mel": 2.0, "wave": 5.0, "unit": 0.01}


def mel_filters(bins: int, count: int = 80) -> Tensor:
    """[count, bins] triangles, equally spaced in mel from 40 Hz to 8 kHz."""

    def to_mel(f: float) -> float:
        return 2595 * math.log10(1 + f / 700)

    points = torch.linspace(to_mel(40.0), to_mel(RATE / 2), count + 2)
    hertz = 700 * (10 ** (points / 2595) - 1)
    f = torch.linspace(0, RATE / 2, bins)[None]
    up = (f - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    down = (hertz[2:, None] - f) / (hertz[2:] - hertz[1:-1])[:, None]
    return torch.minimum(up, down).clamp_min(0)


class Reconstruction(torch.nn.Module):
    """Perceptual distances between two signals."""

    sizes = (256, 512, 1024)

    def __init__(self):
        super().__init__()
        for n in self.sizes:
            self.register_buffer(f"window{n}", torch.hann_window(n))
        self.register_buffer("mel", mel_filters(513))

    def spectrum(self, x: Tensor, n: int) -> Tensor:
        window = getattr(self, f"window{n}")
        return torch.stft(x, n, n // 4, window=window, return_complex=True).abs().clamp_min(1e-4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """x, y [B, L] -> named losses."""
        log, converge, mel = 0.0, 0.0, 0.0
        for n in self.sizes:
            a, b = self.spectrum(x, n), self.spectrum(y, n)
            log = log + (a.clamp_min(1e-2).log() - b.clamp_min(1e-2).log()).abs().mean()
            converge = converge + (a - b).norm() / b.norm()
            if n == 1024:
                m, k = (self.mel @ s for s in (a, b))
                mel = (m.clamp_min(1e-2).log() - k.clamp_min(1e-2).log()).abs().mean()
        return {"stft": log / 3, "converge": converge / 3, "mel": mel, "wave": (x - y).abs().mean()}


class Codec:
    """Encoder and decoder of the eager model, with the fixed posterior."""

    def __init__(self, ming):
        self.audio = ming.audio
        scale = self.audio.encoder.fc3
        rows = slice(scale.out_features // 2, None)  # of the deviation, which is not learned
        with torch.no_grad():
            scale.weight[rows] = 0
            scale.bias[rows] = math.log(math.expm1(DEVIATION))
        for p in (scale.weight, scale.bias):
            p.register_hook(lambda grad: torch.cat((grad[: rows.start], 0 * grad[rows])))

    def names(self) -> list[str]:
        """Of the parameters that are learned here: the semantic module has its own stage."""
        parts = (
            "encoder.fc",
            "encoder.encoder.layers.",
            "encoder.encoder.norm.",
            "decoder.fc1.",
            "decoder.decoder.layers.",
            "decoder.decoder.norm.",
            "decoder.head.out.",
        )
        return [n for n, _ in self.audio.named_parameters() if n.startswith(parts)]

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """samples [B, L] -> mean [B, T, 64] and what the decoder makes of it, [B, L]."""
        mean, _ = self.audio.encoder(samples)
        z = mean + DEVIATION * torch.randn_like(mean)
        return mean, self.audio.decoder.decode(z, None, True)


def excerpts(corpus: Corpus, rng: np.random.Generator, count: int, among: range) -> Tensor:
    """Random pieces of random utterances, [count, FRAMES * HOP], short ones padded."""
    out = np.zeros((count, FRAMES * HOP), np.float32)
    for row in out:
        x = corpus.speech(int(rng.choice(among)))
        start = int(rng.integers(max(1, len(x) - len(row) + 1)))
        piece = x[start : start + len(row)] * rng.uniform(0.7, 1.3)
        row[: len(piece)] = piece
    return torch.from_numpy(out)


def main() -> None:
    args = options("train the tiny voice's AudioVAE", steps=6000, batch=16)
    corpus = Corpus(args.corpus)
    ming, _ = new_model()
    start_from(ming, args.start)
    codec, reconstruction = Codec(ming), Reconstruction()
    learned = only(codec.audio, codec.names())
    run = Run("codec", {"audio": codec.audio}, learned, WEIGHTS, args)
    torch.manual_seed(run.step)
    known, held_out = corpus.split()
    rng = np.random.default_rng(run.step)

    def losses(x: Tensor) -> dict[str, Tensor]:
        mean, y = codec(x)
        flat = mean.flatten(0, 1)
        spread = (flat.var(dim=0) - 1).clamp_min(0).mean()
        return reconstruction(y, x) | {"unit": flat.mean(dim=0).square().mean() + spread}

    run.train(
        lambda: losses(excerpts(corpus, rng, args.batch, known)),
        lambda: losses(excerpts(corpus, np.random.default_rng(0), 64, held_out)),
    )


if __name__ == "__main__":
    main()
