"""The parts of a checkpoint, by the names of its tensors."""

# part -> prefixes of its tensors; the first that matches wins
PARTS = {
    "LLM, experts": ("model.model.layers.*.mlp.experts.",),
    "LLM, embedding and head": ("model.model.word_embeddings.", "model.lm_head."),
    "LLM, the rest": ("model.",),
    "flow head": ("flowloss.",),
    "audio encoder": ("audio.encoder.",),
    "semantic module": ("audio.decoder.semantic_model.", "audio.decoder.fc2."),
    "audio decoder": ("audio.decoder.",),
    "projection and stop head": ("linear_proj_audio.", "stop_head."),
}


def part_of(name: str) -> str:
    """The part that a tensor, or a prefix of tensors, belongs to; "other" where there is none."""
    for part, prefixes in PARTS.items():
        for prefix in prefixes:
            head, _, tail = prefix.partition("*")
            if name.startswith(head) and tail in name[len(head) :]:
                return part
    return "other"
