"""Loading: from a checkpoint's folder to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config.model_config import MingConfig
from ..errors import CheckpointError
from ..text.prompts import Tokenizer
from .adapters import MergedTensors, merged
from .formats import resolve, unsupported_reason
from .headers import read_headers
from .memory_plan import require_memory
from .ming import MingModel, declare_parts
from .sources import FileTensors, Source
from .weights import plan_load

logger = logging.getLogger(__name__)


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    weights: str | None = None,
    strict: bool = True,
    activation_dtype: torch.dtype | None = None,
    layers_on_demand: bool = False,
    check_memory: bool = True,
    adapters: Sequence[str | Path] = (),
) -> MingModel:
    """Load a checkpoint folder in the official layout (docs/model.md section 6).

    weights: the format of the large matrices, one of `formats.WEIGHTS`: "fp32", "fp16", "bf16",
    or quantised as they are read, "int8", "int8_dyn" (activations too) or "fp8"; formats.py says
    which stay out of it and why. dtype: of the matrices that are not quantised, and on a GPU of
    activations; None is float32 on a CPU and bfloat16 on a GPU, and bfloat16 beside quantised ones.
    activation_dtype: of what flows between the layers; None is float32 on a CPU (16-bit weights are
    widened as they are read) and dtype on a GPU. Weights go from the file straight into their
    place: memory peaks at the weights and the one matrix in hand. layers_on_demand: those of the
    language model are read at every pass, and dropped: for a look at a model that does not fit.

    adapters: folders of LoRA adapters, merged in this order (`adapters.read_adapter`).

    check_memory: raise NotEnoughMemory, before anything is read, where the weights and a request of
    one minute will not fit in what the device has left (`memory_plan.require_memory`).

    Raises CheckpointError for a missing, truncated or corrupt file, a config that lacks or
    contradicts something, and tensors that are missing, unexpected or misshapen, with their keys;
    strict=False skips the unexpected ones, which one warning in the log and `load_report` name.
    Values that are not finite are an error that names the tensor.
    """
    folder, device = Path(path), torch.device(device)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: a checkpoint is one with a config.json")
    config = MingConfig.from_folder(folder)
    source = merged(FileTensors(read_headers(folder), str(folder)), adapters)
    return from_source(
        source,
        config,
        Tokenizer.from_folder(folder),
        device=device,
        dtype=dtype,
        weights=weights,
        strict=strict,
        activation_dtype=activation_dtype,
        layers_on_demand=layers_on_demand,
        check_memory=check_memory,
    )


def from_source(
    source: Source,
    config: MingConfig,
    tokenizer: Tokenizer | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    strict: bool = True,
    activation_dtype: torch.dtype | None = None,
    layers_on_demand: bool = False,
    check_memory: bool = True,
) -> MingModel:
    """`load` with the tensors of any source."""
    formats = resolve(weights, dtype, device, activation_dtype)
    reason = unsupported_reason(formats, device)
    if reason is not None:
        logger.warning("weights %s: %s; the formulas compute, slowly", formats.weights, reason)
    plan = plan_load(
        source, lambda w: declare_parts(w, config, layers_on_demand=layers_on_demand), device=device, formats=formats
    )
    plan.require_complete(strict)
    if isinstance(source, MergedTensors):
        idle = sorted(source.changed & set(plan.report.unused))
        if idle:
            logger.warning("%s: an adapter changes %s, which is not used", source.what, ", ".join(idle[:5]))
        plan.report.merged = {str(adapter.folder): len(adapter.names) for adapter in source.adapters}
    if check_memory and not layers_on_demand:
        require_memory(plan, config)
    return MingModel(
        config=config,
        tokenizer=tokenizer,
        load_report=plan.report,
        device=device,
        dtype=formats.dtype,
        weights=formats.weights,
        **plan.read(),
    )
