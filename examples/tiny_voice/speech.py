"""Stage 2: the language model, the semantic module, the flow head and the stop head.

    python examples/tiny_voice/speech.py CORPUS OUT [--steps N] [--resume] [--start FOLDER]

Needs OUT/codec.pt of stage 1, whose encoder and decoder stay as they are. Two tasks, in the
prompts of the released model: to speak a text after a reference utterance of the same voice
(conditional flow matching on every patch, with the previous patch as history, and condition
dropout for guidance), and to write down what an utterance says. Half of the utterances are heard
as the model itself would have said them so far, not as they were: else it never meets its own
mistakes, and small ones grow. Writes OUT/speech.pt every two minutes, and OUT/speech.json, the
losses.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from codec import HOP
from corpus import PHONES, RATE, SILENCE, Corpus
from loop import Run, only, options, start_from
from settings import new_model, tokenizer
from torch import Tensor

from mingcore.text.prompts import ASR_INSTRUCTION, Audio, Tokenizer, tts_prompt, understanding_prompt

P = 5  # frames of a patch
SILENT_PATCHES = 5  # learned after the end, where the stop head says stop
MIN_PATCHES = 22  # of an example: inference asks for 1.8 s at least, whatever the stop head says
MAX_SECONDS = 5  # seconds of an utterance
DROPPED_CONDITION = 0.1
LATENT_NOISE = 0.4  # the largest deviation added to latents that are heard
FLOW_PATCHES = 192  # of a batch that the flow head learns from: it is the most expensive part of a step
SHARES = {"slt": 2, "rms": 1, "awb": 1}  # of spoken examples; slt's digits are the shortest
AHEAD = 3  # patches whose phones are asked for
WORDS = 24  # classes of word counts, from 0
OWN_ROWS = 3  # examples of a step whose audio the model generates itself
OWN_STEPS = 5  # Euler steps for that
OWN_KEPT = 384
# phones and words: where in the text it is; balance: spreads the tokens over the experts
WEIGHTS = {"flow": 1.0, "guess": 0.5, "phones": 0.2, "words": 0.1, "stop": 0.1, "text": 0.2, "balance": 0.01}


def latents_of(ming, corpus: Corpus, path: Path) -> list[tuple[Tensor, int]]:
    """Per utterance: latents [n, 64] (means, the silence behind it too) and its own patches."""
    out = torch.load(path, weights_only=True) if path.exists() else []
    if len(out) == len(corpus.index):
        return out
    with torch.no_grad():
        for i in range(len(out), len(corpus.index)):
            x = corpus.speech(i)
            patches = -(-len(x) // (P * HOP))
            most = max(patches + SILENT_PATCHES, MIN_PATCHES)
            padded = np.zeros(most * P * HOP, np.float32)
            padded[: len(x)] = x
            mean, _ = ming.audio.encoder(torch.from_numpy(padded)[None])
            out.append((mean[0], patches))
    torch.save(out, path)
    return out


@dataclass
class Example:
    """A prompt and the audio in it: ids [T], patches of latents to hear and to speak."""

    ids: list[int]
    heard_at: int  # position of the first heard patch
    heard: Tensor  # [n, P, 64]
    spoken: Tensor  # [m, P, 64], one after each position from `heard_at` - 1 + n on
    last: int  # the spoken patch at which to stop
    answer: int  # tokens at the end that are to be written (recognition)
    phones: Tensor | None = None  # [n + m + AHEAD, P] of the frames of all patches, then silence
    words: Tensor | None = None  # [n + m, P, 2]: words over, and words to come, at each frame
    own: Tensor | None = None  # what the model said in place of `spoken`

    @property
    def input(self) -> Tensor:
        """[n + m, P, 64], the patches that the model meets."""
        return torch.cat((self.heard, self.spoken if self.own is None else self.own))


class Tasks:
    """Random examples of both tasks."""

    def __init__(self, corpus: Corpus, latents: list[tuple[Tensor, int]], seed: int, among: range):
        self.corpus, self.latents, self.rng = corpus, latents, random.Random(seed)
        self.tokenizer = Tokenizer(tokenizer())
        self.by_voice: dict[tuple[str, float], list[int]] = {}  # and by speed
        for i in among:
            u = corpus.index[i]
            if u.length < MAX_SECONDS * RATE:
                self.by_voice.setdefault((u.voice, u.stretch), []).append(i)

    def speak(self) -> Example:
        voices, shares = list(self.by_voice), [SHARES[voice] for voice, _ in self.by_voice]
        (voice,) = self.rng.choices(voices, shares)
        a = min(self.rng.choices(self.by_voice[voice], k=3), key=lambda i: self.corpus.index[i].length)
        b = self.rng.choice(self.by_voice[voice])
        (za, na), (zb, nb) = self.latents[a], self.latents[b]
        reference = za[: na * P].view(-1, P, za.shape[-1])
        # a voice is cut to whole patches: its last, padded one is missing
        reference = reference[: max(1, self.corpus.index[a].length // (P * HOP))]
        texts = self.typed(b), self.typed(a)
        prompt = tts_prompt(self.tokenizer, *texts, len(reference))
        start = prompt.spans[0][0]
        spoken = zb.view(-1, P, zb.shape[-1])
        places = self.places(a, len(reference)), self.places(b, len(spoken) + AHEAD)
        phones, words = (torch.cat(pair) for pair in zip(*places))
        words = words[: len(reference) + len(spoken)]
        return Example(list(prompt.ids), start, reference, spoken, nb - 1, 0, phones, words)

    def places(self, i: int, patches: int) -> tuple[Tensor, Tensor]:
        """In the middle of each frame of utterance i, silence after it: the phone [patches, P],
        and the words over and to come [patches, P, 2]."""
        said = self.corpus.index[i].phones
        total = said[-1][2]
        names = torch.tensor([PHONES.index(p) for p, _, _ in said] + [PHONES.index(SILENCE)])
        over = torch.tensor([n for _, _, n in said] + [total])
        middles = (torch.arange(patches * P) + 0.5) * HOP
        at = torch.searchsorted(torch.tensor([float(end) for _, end, _ in said]), middles)
        words = torch.stack((over[at], total - over[at]), dim=-1).clamp(max=WORDS - 1)
        return names[at].view(patches, P), words.view(patches, P, 2)

    def typed(self, i: int) -> str:
        """The text of utterance i, with a full stop or without: people type both."""
        text = self.corpus.index[i].text.removesuffix(".")
        return text + "." * (self.rng.random() < 0.5)

    def write(self) -> Example:
        i = self.rng.choice(self.by_voice[self.rng.choice(list(self.by_voice))])
        z, _ = self.latents[i]
        n = -(-self.corpus.index[i].length // HOP) // P
        heard = z[: n * P].view(-1, P, z.shape[-1])
        prompt = understanding_prompt(self.tokenizer, [ASR_INSTRUCTION, Audio(n)])
        answer = self.tokenizer.encode("English\t") + self.tokenizer.encode(self.corpus.index[i].text)
        answer.append(self.tokenizer.special("<|endoftext|>", "recognition"))
        return Example(list(prompt.ids) + answer, prompt.spans[0][0], heard, heard[:0], 0, len(answer))


class Trainer:
    """The losses of a batch of examples."""

    def __init__(self, ming):
        self.ming = ming
        # In training alone: a guess at the next patch straight from the LLM, the phones of the
        # next few, and the place in the text. Every position then teaches the LLM to follow the
        # text, and not only the sound so far, however few patches the flow head takes.
        hidden = ming.model.model.word_embeddings.embedding_dim
        widths = {"guess": P * 64, "phones": AHEAD * P * len(PHONES), "words": P * 2 * WORDS}
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(hidden, width) for name, width in widths.items()})
        self.own: list[Example] = []
        self.logits: list[Tensor] = []
        for name, module in ming.model.named_modules():
            if name.endswith(("mlp.gate", "audio_gate")):
                module.register_forward_hook(lambda m, i, out: self.logits.append(out))

    def names(self) -> list[str]:
        """Of the parameters that are learned: the codec stays as it is."""
        fixed = (
            "audio.encoder.",
            "audio.decoder.decoder.",
            "audio.decoder.head.",
            "audio.decoder.fc1.",
            "audio.decoder.fc3.",
        )
        return [n for n, _ in self.ming.named_parameters() if not n.startswith(fixed) and "image_gate" not in n]

    def embed(self, batch: list[Example]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, H] of ids, heard and spoken patches; which positions are heard."""
        ming = self.ming
        spread = torch.tensor([LATENT_NOISE * (e.own is None) for e in batch])
        spread = spread * torch.rand(len(batch))
        rows, masks = [], []
        longest = max(len(e.heard) + len(e.spoken) for e in batch)
        sound = torch.zeros(len(batch), longest * P, 64)
        for row, e in zip(sound, batch):
            z = e.input.flatten(0, 1)
            row[: len(z)] = z
        sound = sound + spread[:, None, None] * torch.randn_like(sound)
        self.sound = sound.view(len(batch), longest, P, 64)
        projected = ming.pool(ming.audio.decoder.unify(sound, {}))
        for i, e in enumerate(batch):
            words = ming.model.model.word_embeddings(torch.tensor(e.ids))
            n, m, at = len(e.heard), len(e.spoken), e.heard_at
            rows.append(torch.cat((words[:at], projected[i, :n], words[at + n :], projected[i, n : n + m])))
            mask = torch.zeros(len(rows[-1]), dtype=torch.bool)
            mask[at : at + n] = True
            masks.append(mask)
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(rows, batch_first=True), pad(masks, batch_first=True)

    def speak(self, batch: list[Example]) -> dict[str, Tensor]:
        embeds, _ = self.embed(batch)
        hidden, _ = self.ming.model(embeds, {})
        conditions, histories, targets, stops, phones, words = [], [], [], [], [], []
        for i, e in enumerate(batch):
            n, m = len(e.heard), len(e.spoken)
            # the reference's own patches are learned from too, from the second on
            first = e.heard_at
            conditions.append(hidden[i, first : first + n + m - 1])
            histories.append(self.sound[i, : n + m - 1])
            targets.append(torch.cat((e.heard, e.spoken))[1:])
            ahead = e.phones[1:].unfold(0, AHEAD, 1)[: n + m - 1]  # [n + m - 1, P, AHEAD]
            phones.append(ahead.transpose(1, 2).flatten())
            words.append(e.words[1:].flatten())
            stop = torch.zeros(m, dtype=torch.long)
            stop[e.last :] = 1
            stops.append((hidden[i, first + n - 1 : first + n - 1 + m], stop))
        if torch.is_grad_enabled():
            self.say(batch, conditions, histories)
        condition, history, x1 = (torch.cat(t) for t in (conditions, histories, targets))
        guess = (self.heads["guess"](condition) - x1.flatten(1)).square().mean()
        scores = self.heads["phones"](condition).view(-1, len(PHONES))
        counts = self.heads["words"](condition).view(-1, WORDS)
        some = torch.randperm(len(x1))[:FLOW_PATCHES]
        condition, history, x1 = condition[some], history[some], x1[some]
        keep = (torch.rand(len(condition), 1) >= DROPPED_CONDITION).float()
        # more of the early times, where the text decides
        t = torch.sigmoid(torch.randn(len(x1)) * 1.2 - 0.3)
        x0 = torch.randn_like(x1)
        x = torch.lerp(x0, x1, t[:, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            v = self.ming.flow.velocity(x, t, condition * keep, history).float()
        said = torch.cat([h for h, _ in stops])
        ends = torch.cat([s for _, s in stops])
        return {
            "flow": (v - (x1 - x0)).square().mean(),
            "guess": guess,
            "phones": F.cross_entropy(scores, torch.cat(phones)),
            "words": F.cross_entropy(counts, torch.cat(words)),
            "stop": F.cross_entropy(self.ming.stop_head(said), ends),
        }

    @torch.no_grad()
    def say(self, batch: list[Example], conditions: list[Tensor], histories: list[Tensor]) -> None:
        """Keep some examples with what the model says after what it met, patch by patch."""
        rows = torch.randperm(len(batch))[:OWN_ROWS].tolist()
        condition = torch.cat([conditions[i][-len(batch[i].spoken) :] for i in rows])
        history = torch.cat([histories[i][-len(batch[i].spoken) :] for i in rows])
        noise = torch.randn(OWN_STEPS + 1, *history.shape)
        with torch.autocast("cpu", torch.bfloat16):
            said = self.ming.flow.sample(condition, history, noise, OWN_STEPS)
        for i, own in zip(rows, said.split([len(batch[i].spoken) for i in rows])):
            batch[i].own = own
            if not any(e is batch[i] for e in self.own):
                self.own.append(batch[i])
        del self.own[:-OWN_KEPT]

    def write(self, batch: list[Example]) -> dict[str, Tensor]:
        embeds, heard = self.embed(batch)
        _, logits = self.ming.model(embeds, {}, audio_mask=heard)
        picked = [logits[i, len(e.ids) - e.answer - 1 : len(e.ids) - 1] for i, e in enumerate(batch)]
        wanted = [torch.tensor(e.ids[-e.answer :]) for e in batch]
        return {"text": F.cross_entropy(torch.cat(picked), torch.cat(wanted))}

    def balance(self) -> Tensor:
        """E * sum over experts of (share of tokens) * (mean probability), mean over routers."""
        losses = []
        for logits in self.logits:
            p = logits.softmax(-1)
            share = F.one_hot(p.topk(2, dim=-1).indices, p.shape[-1]).float().mean((0, 1))
            losses.append(p.shape[-1] * (share * p.mean(0)).sum())
        self.logits.clear()
        return torch.stack(losses).mean()


def main() -> None:
    args = options("train the tiny voice to speak and to write", steps=8000, batch=16)
    corpus = Corpus(args.corpus)
    ming, _ = new_model()
    start_from(ming, args.start)
    codec = torch.load(args.out / "codec.pt", weights_only=True)
    ming.audio.load_state_dict(codec["audio"] | codec["averages"])
    latents = latents_of(ming, corpus, args.out / "latents.pt")
    trainer = Trainer(ming)
    learned = only(ming, trainer.names())
    learned |= {f"heads.{n}": p for n, p in trainer.heads.named_parameters()}
    run = Run("speech", {"model": ming, "heads": trainer.heads}, learned, WEIGHTS, args)
    known, held_out = corpus.split()
    tasks = Tasks(corpus, latents, run.step, known)
    torch.manual_seed(run.step)

    def losses(tasks: Tasks, batch: int, own: int = 0) -> dict[str, Tensor]:
        again = tasks.rng.sample(trainer.own, min(own, len(trainer.own)))
        found = trainer.speak(again + [tasks.speak() for _ in range(batch - len(again))])
        found |= trainer.write([tasks.write() for _ in range(max(1, batch // 4))])
        return found | {"balance": trainer.balance()}

    run.train(
        lambda: losses(tasks, args.batch, args.batch // 2), lambda: losses(Tasks(corpus, latents, 0, held_out), 32)
    )


if __name__ == "__main__":
    main()
