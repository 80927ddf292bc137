"""mingcore's kernels in models of the `transformers` library (version 5; docs/transformers.md).

    from mingcore.integrations import transformers as kernels

    kernels.register()
    model = AutoModelForCausalLM.from_pretrained(..., experts_implementation="mingcore")
    kernels.pack(model)  # at load rather than at first use; frees the original weights

Importing this package does not import transformers; `pip install "mingcore[transformers]"` brings
it.
"""

from .codecs import Report, accelerate, undo
from .experts import experts_of, pack, register, unpack, why_not

__all__ = ["Report", "accelerate", "experts_of", "pack", "register", "undo", "unpack", "why_not"]
