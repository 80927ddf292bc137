"""The trained tiny voice as a checkpoint folder in the official layout.

    python examples/tiny_voice/export.py OUT [FOLDER]

Takes OUT/speech.pt (the averaged weights), rounds to bfloat16 and adds the tokenizer, the model
card and one reference voice per speaker, of which `default` is slt's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from corpus import RATE, VOICES, synthesise
from safetensors.torch import save_file
from settings import new_model, tokenizer

from mingcore.testing.synthetic import tensor_shapes

REFERENCE = "one nine four seven"
KEEPS = ("istft.window", "inv_freq")  # buffers that stay float32
BUNDLED = Path(__file__).resolve().parents[2] / "mingcore" / "checkpoints" / "tiny"

README = """\
# tiny

A whole Ming-UniAudio in miniature that speaks and writes English digits and some 150 words, so
that a new user hears every part at work without a download. It is a demonstration and a guard of
quality, not a text-to-speech system: words that it has not learned come out as mumbling, and it
has not learned to edit.

| part | size |
|---|---|
| LLM | 3 layers of 256, 2 heads of 128 (1 KV), three routers, 3-D RoPE |
| experts | 8 of width 64, top-2, and one shared |
| flow head | 4 x 128, 2 heads |
| AudioVAE | 3 + 4 layers of 192, semantic module 1 x 128; 16 kHz, 50 latents of 64 a second |
| tokenizer | byte-level BPE of 480, blind to capitals; any text can be encoded |
| voices | slt (default), rms, awb: one utterance of each synthetic speaker |

**Vocabulary**: `examples/tiny_voice/sentences.py`: strings of one to seven digits, and sentences
such as "My mother finds the old book on the table." and "Hello, this is Ming speaking from a plain
CPU." **Languages**: English. **Tasks**: `tts`, `asr`.

**Data**: 36000 utterances (17.1 hours) synthesised by flite 2.2 with its voices slt, rms and awb at
three speeds; texts from a seeded grammar. flite's licence (Carnegie Mellon University) lets anyone
use, change and distribute it without restriction, with its notice kept in its code and without its
authors' names as endorsement. No other recording of a person was used.

**Training**: on two CPU cores: the AudioVAE 6000 steps; the rest 13600 steps on a quarter of the
data, of which the last 7000 had the phones as a target, then 10300 steps on all of it with the
count of words too and half of the utterances heard as the model itself says them; the averaged
weights rounded to bfloat16. `make voice` makes such a voice from nothing by one command: the data,
both stages (the second in 8000 steps; more make it better), this folder.

**Measured** with an independent recogniser (PocketSphinx, a grammar of digits) on 50 held-out
strings of three to six digits: it mishears 7.2 % of the words of this voice and 0.4 % of the
synthesiser's; over three takes of each string 12 % of slt's, the fastest speaker, 6 % of rms's and
4 % of awb's. 49 of 50 sentences end within 30 % of the synthesiser's length. Through the codec
alone: 0.8 %. `tests/quality` measures it.

License: Apache-2.0.
"""


def tensors(out: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The checkpoint's tensors by their official names, and its config."""
    ming, mapping = new_model()
    state = torch.load(out / "speech.pt", weights_only=True)
    averages = {n: t for n, t in state["averages"].items() if not n.startswith("heads.")}
    ming.load_state_dict(state["model"] | averages)
    wanted = tensor_shapes(mapping)
    found = {n: t for n, t in ming.state_dict().items() if n in wanted}
    if missing := set(wanted) - set(found):
        raise KeyError(f"the model lacks {sorted(missing)[:3]}")
    return {n: t.float() if n.endswith(KEEPS) else t.to(torch.bfloat16).contiguous() for n, t in found.items()}, mapping


def make(out: Path, folder: Path) -> None:
    """Write the checkpoint."""
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    weights, mapping = tensors(out)
    (folder / "README.md").write_text(README)
    (folder / "config.json").write_text(json.dumps(mapping, indent=1) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)

    from mingcore import MingAudio

    ming = MingAudio.from_pretrained(folder, device="cpu")
    for name in VOICES:
        voice = ming.voice((synthesise(REFERENCE, name, 1.0), RATE), transcript=REFERENCE)
        voice.save(folder / "voices" / f"{name}.safetensors")
        if name == VOICES[0]:
            voice.save(folder / "voices" / "default.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the trained tiny voice as a checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=BUNDLED)
    args = parser.parse_args()
    make(args.out, args.folder)
