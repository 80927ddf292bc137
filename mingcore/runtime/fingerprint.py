"""Which audio tokenizer a checkpoint has, as a short name: latents of another mean nothing."""

import hashlib
from pathlib import Path

import torch

from ..model.headers import FileReader, read_headers

# the encoder's last layer makes the latents; small, and different after any training
_TENSORS = ("audio.encoder.fc3.weight", "audio.encoder.fc3.bias", "audio.decoder.fc1.weight")


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of the tokenizer's weights, rounded to bfloat16.

    So a converted copy of a checkpoint, and one that was tuned behind the tokenizer, keep their
    voices. Reads headers and less than a megabyte.
    """
    headers = read_headers(folder)
    digest, reader = hashlib.sha256(), FileReader()
    for name in _TENSORS:
        if name not in headers:
            continue
        info = headers[name]
        data = bytearray(info.nbytes)
        reader.read(info, 0, memoryview(data))
        tensor = torch.frombuffer(data, dtype=info.dtype).to(torch.bfloat16)
        digest.update(f"{name}{list(info.shape)}".encode())
        digest.update(tensor.view(torch.int16).numpy().tobytes())
    reader.close()
    return digest.hexdigest()[:16]
