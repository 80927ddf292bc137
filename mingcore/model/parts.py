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

# part -> what cannot be done without it
FEATURES = {
    "LLM, experts": "everything but encoding and decoding",
    "LLM, embedding and head": "everything but encoding and decoding",
    "LLM, the rest": "everything but encoding and decoding",
    "flow head": "speech and edits",
    "audio encoder": "encoding, voices, transcription and edits",
    "semantic module": "everything but encoding and decoding",
    "audio decoder": "decoding, speech and edits",
    "projection and stop head": "everything but encoding and decoding",
}
_FEATURES_BY_NAME = {"model.lm_head.": "transcription and edits", "stop_head.": "speech and edits"}


def feature_of(name: str) -> str | None:
    """What a model cannot do without this tensor, in words; None for a tensor of no known part."""
    for prefix, feature in _FEATURES_BY_NAME.items():
        if name.startswith(prefix):
            return feature
    return FEATURES.get(part_of(name))


def part_of(name: str) -> str:
    """The part that a tensor, or a prefix of tensors, belongs to; "other" where there is none."""
    for part, prefixes in PARTS.items():
        for prefix in prefixes:
            head, _, tail = prefix.partition("*")
            if name.startswith(head) and tail in name[len(head) :]:
                return part
    return "other"
