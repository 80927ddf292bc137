"""Ming-UniAudio as one object, and what it declares of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config.model_config import MingConfig
from ..errors import CheckpointError
from ..text.prompts import Tokenizer
from .declared import Declared, LoadReport
from .flow import FlowHead
from .heads import LinearPooling, StopHead
from .llm import LLM
from .vae import AudioVAE
from .weights import Weights


@dataclass
class MingModel:
    """The parts of Ming-UniAudio, the config they were built by, and the tokenizer if there is one.

    `load_report` says which tensors of the checkpoint are known to be unused, and with
    strict=False which unknown ones were skipped. `weights` is the format of the large matrices, `dtype` the type
    of the others.
    """

    config: MingConfig
    llm: LLM
    flow: FlowHead
    vae: AudioVAE
    pool: LinearPooling
    stop_head: StopHead
    tokenizer: Tokenizer | None
    load_report: LoadReport
    device: torch.device
    dtype: torch.dtype
    weights: str = "fp32"


def declare_parts(w: Weights, config: MingConfig, *, layers_on_demand: bool = False) -> dict[str, Declared]:
    """The parts of `MingModel`, by name, in the order in which they are read.

    Raises CheckpointError where the flow head's channels are not the config's.
    """
    H, audio = config.llm.hidden_size, config.audio
    head = w.sub("flowloss.cfm.model")
    flow = FlowHead.declare(head, config.flow, cond_size=H)
    channels = head.shape("x_embedder.weight")[1]
    if channels != config.latent_dim:
        raise CheckpointError(
            f"{w.what}: the flow head makes {channels} channels, but "
            f"audio_tokenizer_config.enc_kwargs.latent_dim is {config.latent_dim}"
        )
    return {
        "flow": flow,
        "llm": LLM.declare(w.sub("model"), config.llm, on_demand=layers_on_demand),
        "vae": AudioVAE.declare(w.sub("audio"), audio),
        "pool": LinearPooling.declare(
            w.sub("linear_proj_audio.final_layer"), audio.semantic_hidden, H, config.patch_frames
        ),
        "stop_head": StopHead.declare(w, H),
    }
