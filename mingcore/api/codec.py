"""The part of the public class that needs the AudioVAE only: audio to latents and back."""

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio.files import read_audio, require_samples
from ..audio.streams import resampled
from ..errors import InputError
from ..fidelity import RoundTrip
from ..results import Speech
from ..runtime.noise import SeededNoise
from ..runtime.params import draw_seed
from ..runtime.stats import Meter
from ..runtime.task import to_numpy

logger = logging.getLogger(__name__)

# input is processed in one piece; a longer one is logged
LONG_AUDIO_SECONDS = 600.0


class Codec:
    """Encode and decode with the AudioVAE of `model`."""

    model: Any

    @property
    def sample_rate(self) -> int:
        """Of all output, in Hz."""
        return self.model.config.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.llm.device

    def encode(self, audio: Any, *, sample: bool = False, seed: int | None = None) -> np.ndarray:
        """Latents [T, 64] float32 of `audio`, 50 frames per second: the posterior's mean.

        sample: mean + std · noise instead, the noise by `seed`. audio: as in `MingAudio`. Raises InputError.
        """
        samples = self._read(audio, self.model.config.hop_samples, "one frame")
        with torch.no_grad():
            mean, std = self.model.vae.encode(samples)
            if sample:
                noise = SeededNoise(draw_seed(seed), self.device).posterior(mean)
                mean = self.model.vae.sample_posterior(mean, std, noise)
        return to_numpy(mean[0])

    def encode_stream(
        self, chunks: Iterable[Any], sample_rate: int | None = None, *, sample: bool = False, seed: int | None = None
    ) -> Iterator[np.ndarray]:
        """Latents [t, 64] float32, t ≥ 1, of consecutive chunks of samples, as they arrive.

        Chunks are [l] of NumPy or PyTorch, any l ≥ 0, float or integer (scaled by full scale), at `sample_rate` Hz
        (None: the checkpoint's). All pieces concatenated equal `encode` of all chunks; with `sample` the noise is
        drawn in another order. The end is padded to a frame. Memory is constant. Raises InputError for a chunk of
        another kind, and when the chunks hold no samples.
        """
        rate = self.sample_rate if sample_rate is None else sample_rate
        pieces = resampled(chunks, rate, self.sample_rate)
        noise = SeededNoise(draw_seed(seed), self.device) if sample else None
        return self._encode_pieces(pieces, noise)

    def _encode_pieces(self, pieces: Iterator[np.ndarray], noise: SeededNoise | None) -> Iterator[np.ndarray]:
        vae, nothing = self.model.vae, np.zeros(0, np.float32)
        state = vae.new_encoder_state(1)
        # the end is an empty chunk of its own, so that no chunk waits for the next one
        for samples, last in chain(zip(pieces, repeat(False)), [(nothing, True)]):
            x = torch.from_numpy(samples).to(self.device)[None]
            with torch.no_grad():
                mean, std, _ = vae.encode_stream(x, state, last)
                if noise is not None and mean.shape[1]:
                    mean = vae.sample_posterior(mean, std, noise.posterior(mean))
            if mean.shape[1]:
                yield to_numpy(mean[0])
        if state.max_length == 0:
            raise InputError("audio: the stream held no samples")

    def decode(self, latents: Any) -> Speech:
        """Audio of latents [T, 64] (NumPy or PyTorch): T · 320 samples.

        Raises InputError for another shape, NaN or infinity.
        """
        latents = self._latents("latents", latents)
        return next(self._decode_pieces(iter([(latents, True)]), None))

    def decode_stream(self, chunks: Iterable[Any]) -> Iterator[Speech]:
        """Audio of consecutive chunks of latents [t, 64], each t ≥ 1, as they arrive.

        No chunk waits for the next one: the inverse STFT's overlap with later frames (60 ms) is held back until they
        are there, and the last piece holds the rest. All pieces concatenated equal `decode` of all chunks. All pieces
        share one `stats`. Memory is constant. Raises InputError for a chunk of another kind, or when there is none.
        """
        latents = (self._latents("latents", chunk) for chunk in chunks)
        nothing = torch.empty(1, 0, self.model.config.latent_dim, dtype=torch.float32, device=self.device)
        pieces = chain(zip(latents, repeat(False)), [(nothing, True)])
        return self._decode_pieces(pieces, self.model.vae.new_decoder_state(1))

    def roundtrip(self, audio: Any, *, sample: bool = False, seed: int | None = None) -> RoundTrip:
        """`audio` through `encode` and `decode`, with the time of each and the distances of `fidelity`."""
        samples = self._read(audio, self.model.config.hop_samples, "one frame")[0].cpu().numpy()
        start = time.perf_counter()
        latents = self.encode((samples, self.sample_rate), sample=sample, seed=seed)
        middle = time.perf_counter()
        again = self.decode(latents).samples[: samples.size]
        end = time.perf_counter()
        return RoundTrip(samples, again, self.sample_rate, len(latents), middle - start, end - middle)

    def _decode_pieces(self, pieces: Iterator[tuple[Tensor, bool]], state: Any) -> Iterator[Speech]:
        meter, begun = Meter(self.device), False
        meter.pause()
        for latents, last in pieces:
            begun = begun or latents.shape[1] > 0
            if not begun:
                raise InputError("latents: there is no chunk to decode")
            meter.resume()
            with torch.no_grad():
                sound, _ = self.model.vae.decode(latents, state, last)
            samples = to_numpy(sound[0])
            meter.count_audio(samples.size, self.sample_rate)
            meter.pause()
            meter.stats.ended_by = "stop" if last else None
            if samples.size:
                yield Speech(samples, self.sample_rate, meter.stats)

    def _read(self, audio: Any, min_samples: int, what: str) -> Tensor:
        """Samples [1, L] on the device, L ≥ min_samples."""
        samples = read_audio(audio, self.sample_rate)
        require_samples(samples, min_samples, what)
        seconds = samples.size / self.sample_rate
        if seconds > LONG_AUDIO_SECONDS:
            logger.warning("audio: %.0f s are processed whole; memory grows with them", seconds)
        return torch.from_numpy(np.ascontiguousarray(samples)).to(self.device)[None]

    def _latents(self, name: str, latents: Any) -> Tensor:
        """[T, 64] or [1, T, 64] of NumPy or PyTorch → [1, T, 64] float32 on the device."""
        channels = self.model.config.latent_dim
        if not isinstance(latents, Tensor):
            latents = np.asarray(latents)
            if latents.dtype.kind != "f":
                raise InputError(f"{name}: latents must be float, got {latents.dtype}")
            latents = torch.from_numpy(np.ascontiguousarray(latents, np.float32))
        shape = list(latents.shape)
        if latents.dim() == 3 and shape[0] == 1:
            latents = latents[0]
        if latents.dim() != 2 or latents.shape[1] != channels or latents.shape[0] == 0:
            raise InputError(f"{name}: latents must be [T, {channels}] with T >= 1, got {shape}")
        latents = latents.to(self.device, torch.float32)
        if not bool(latents.isfinite().all()):
            raise InputError(f"{name}: latents hold NaN or infinity")
        return latents[None]
