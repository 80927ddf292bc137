"""Understanding and editing against the reference: golden h and i, every tensor of them."""

import torch

from mingcore.runtime import prefill
from mingcore.runtime.params import PatchLimits
from mingcore.runtime.sampling import TextPlan
from mingcore.runtime.single import Continuation, generate_tokens, results
from mingcore.runtime.task import Patch
from mingcore.text.prompts import Audio, Prompt, understanding_prompt


def likeliest() -> None:
    """No draws: the likeliest token each time."""


def placed(g) -> Prompt:
    """The recorded ids with the recorded place of the audio block."""
    start, patches = g["audio_placeholder_loc_lens"].flatten().tolist()
    return Prompt(tuple(g["input_ids"][0].tolist()), ((start, patches),))


def test_recognition(tools, model, monkeypatch):
    g = tools.Recorded("h_asr")
    prompt = placed(g)
    tape = tools.Tape(g, "vae_")
    latents = prefill.posterior_latents(model, g["waveform"], tape)
    assert tape.is_over
    audio = prefill.embed_audio(model, latents).projected
    tools.close(audio, g["audio_embeds"])
    assert g["audio_embeds_lengths"].tolist() == [[audio.shape[1]]]
    samples = g["waveform"].shape[1]
    assert prefill.audio_patches(samples, 320, 5) == audio.shape[1] == 10

    # the recorded message has the audio before its text; the builder keeps any order
    text = "".join(INVERSE[i] for i in prompt.ids[19:29])
    assert understanding_prompt(model.tokenizer, [Audio(10), text]) == prompt
    assert prompt.audio_mask == g["audio_mask"][0].bool().tolist()
    tools.close(prefill.embed_prompt(model, prompt, [audio]), g["inputs_embeds"])

    hidden, llm = prefill.prefill(model, prompt, [audio], audio_router=True, expected_tokens=12)
    context = prefill.PrefillResult(hidden[:, -1], llm, None, latents[:, :0])
    scores, logits = [], model.llm.logits
    monkeypatch.setattr(model.llm, "logits", lambda hidden: scores.append(logits(hidden)) or scores[-1])
    tokens = list(generate_tokens(model, context, TextPlan(12, 0.0, ()), likeliest))
    assert list(prompt.ids) + tokens == g["generated"][0].tolist()
    tools.close(torch.cat(scores, dim=1), g["scores"])
    unread = set(g.names()) - g.seen
    assert not unread, unread


INVERSE = {(7 * c + 10) % 480: chr(c) for c in [*range(97, 123), 32]}


def test_editing(tools, model, monkeypatch):
    g = tools.Recorded("i_edit")
    monkeypatch.setattr(model.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    prompt = placed(g)
    tape = tools.Tape(g, "edit.")
    latents = prefill.posterior_latents(model, g["waveform"], tape)
    audio = prefill.embed_audio(model, latents, expected_patches=2)
    hidden, llm = prefill.prefill(model, prompt, [audio.projected], audio_router=False, expected_tokens=2)
    start = torch.zeros(1, 5, 64)
    context = prefill.PrefillResult(hidden[:, -1], llm, audio.semantic, start)
    gen_audio = 111
    plan, limits = TextPlan(20, 0.0, (gen_audio,), then=gen_audio), PatchLimits(17, 40)
    edit = Continuation(model, context, noise=tape, limits=limits, text=plan)
    pieces = list(results(model, edit))
    tokens, patches = ([p for p in pieces if isinstance(p, kind)] for kind in (int, Patch))
    wanted = g["edit.tokens_argmax"].tolist()
    assert tokens == wanted[:4] == pieces[:4]

    assert len(patches) == 17 and patches[-1].stopped and tape.is_over
    conditions = torch.stack([p.condition for p in patches], dim=1)
    tools.close(conditions, g["edit.z_diff"])
    # the reference goes on asking the text head, which only wastes time
    assert model.llm.logits(conditions)[0].argmax(-1).tolist()[:16] == wanted[4:]
    tools.close(torch.cat([p.latents for p in patches], dim=1), g["edit.latents"])
    tools.close(torch.cat([p.samples for p in patches], dim=1), g["edit.wave"][:, 0])
    unread = set(g.names()) - g.seen
    assert not unread, unread
