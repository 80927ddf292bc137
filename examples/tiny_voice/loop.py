"""Shared by both stages: the training loop, its checkpoints and its log."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WARM_STEPS = 300
LAST_RATE = 0.03  # of the first, at the end of the cosine
AVERAGE = 0.999  # decay of the averaged weights
SAVE_SECONDS = 120
LOG_STEPS, VALIDATE_STEPS = 50, 250

Losses = Callable[[], dict[str, Tensor]]


def options(description: str, steps: int, batch: int) -> argparse.Namespace:
    """The command line of a stage."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("corpus", type=Path, help="folder made by corpus.py")
    parser.add_argument("out", type=Path, help="folder for what is learned")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--resume", action="store_true", help="go on from OUT's own checkpoint")
    parser.add_argument("--start", type=Path, help="a checkpoint folder to begin from")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def start_from(ming: nn.Module, folder: Path | None) -> None:
    """Put the weights of a checkpoint in the official layout into the model."""
    if folder is not None:
        tensors = {n: t.float() for n, t in load_file(folder / "model.safetensors").items()}
        ming.load_state_dict(tensors)


class Run:
    """Optimises `parameters` of `modules`; OUT/STAGE.pt holds all that resuming needs.

    Weights are averaged over about the last thousand steps: `averages`, by name.
    """

    def __init__(
        self,
        stage: str,
        modules: dict[str, nn.Module],
        parameters: dict[str, Tensor],
        weights: dict[str, float],
        args: argparse.Namespace,
    ):
        self.path, self.modules, self.args = args.out / f"{stage}.pt", modules, args
        self.parameters, self.weights = parameters, weights
        matrices = [p for p in parameters.values() if p.dim() > 1]
        vectors = [p for p in parameters.values() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98))
        self.averages = {n: p.detach().clone() for n, p in parameters.items()}
        self.step, self.spent, self.log = 0, 0.0, []
        if args.resume and self.path.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.averages, self.step = state["averages"], state["step"]
        self.spent, self.log = state["spent"], state["log"]

    def save(self) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"optimiser": self.optimiser.state_dict(), "averages": self.averages}
        state |= {"step": self.step, "spent": self.spent, "log": self.log}
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)
        self.path.with_suffix(".json").write_text(json.dumps(self.log, indent=0))

    def train(self, losses: Losses, validate: Losses) -> None:
        """Steps until there are args.steps of them."""
        begin, saved = time.time() - self.spent, time.time()
        recent: list[dict[str, float]] = []
        while self.step < self.args.steps:
            recent.append(self._update(losses()))
            self.spent = time.time() - begin
            last = self.step == self.args.steps
            if last or self.step % LOG_STEPS == 0:
                row: dict = {name: round(sum(r[name] for r in recent) / len(recent), 4) for name in recent[0]}
                row |= {"step": self.step, "minutes": round(self.spent / 60, 1)}
                if last or self.step % VALIDATE_STEPS == 0:
                    row["validation"] = self._validate(validate)
                print(json.dumps(row), flush=True)
                self.log.append(row)
                recent = []
            if last or time.time() - saved > SAVE_SECONDS:
                self.save()
                saved = time.time()

    def _update(self, losses: dict[str, Tensor]) -> dict[str, float]:
        warm = min(1.0, (self.step + 1) / WARM_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.args.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self.args.rate * warm * (LAST_RATE + (1 - LAST_RATE) * cosine)
        self.optimiser.zero_grad(set_to_none=True)
        sum(weight * losses[name] for name, weight in self.weights.items()).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimiser.step()
        self.step += 1
        weight = 1 - min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, p in self.parameters.items():
                self.averages[name].lerp_(p, weight)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _validate(self, losses: Losses) -> dict[str, float]:
        """Losses of the averaged weights, with draws that are the same each time."""
        draws, now = torch.get_rng_state(), _copied(self.parameters)
        torch.manual_seed(0)
        with torch.no_grad():
            _put(self.parameters, self.averages)
            found = {name: round(float(value), 4) for name, value in losses().items()}
            _put(self.parameters, now)
        torch.set_rng_state(draws)
        return found


def _copied(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _put(parameters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, p in parameters.items():
        p.copy_(values[name])


def only(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The parameters of these names; all others stay as they are."""
    wanted = set(names)
    for name, p in module.named_parameters():
        p.requires_grad_(name in wanted)
    return {name: p for name, p in module.named_parameters() if name in wanted}
