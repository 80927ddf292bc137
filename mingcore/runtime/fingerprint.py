"""Which audio tokenizer a checkpoint has, as a short name: latents of another mean nothing."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from ..model.adapters import merged
from ..model.headers import read_headers
from ..model.sources import FileTensors

# the encoder's last layer makes the latents; small, and different after any training
_TENSORS = ("audio.encoder.fc3.weight", "audio.encoder.fc3.bias", "audio.decoder.fc1.weight")


def fingerprint(folder: Path, adapters: Sequence[Path] = ()) -> str:
    """16 hexadecimal digits of the tokenizer's weights, rounded to bfloat16.

    So a converted copy of a checkpoint, and one that was tuned behind the tokenizer, keep their
    voices. adapters: folders of those that were merged in. Reads headers and less than a megabyte,
    and merges the tensors in question.
    """
    source = merged(FileTensors(read_headers(folder), str(folder)), adapters)
    digest = hashlib.sha256()
    for name in _TENSORS:
        if name not in source:
            continue
        tensor = torch.empty(source.shape(name), dtype=source.dtype(name))
        source.fill(name, tensor)
        tensor = tensor.to(torch.bfloat16)
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.view(torch.int16).numpy().tobytes())
    source.close()
    return digest.hexdigest()[:16]
