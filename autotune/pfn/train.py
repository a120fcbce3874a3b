"""Fits the curve network to the prior:

    python -m autotune.pfn.train --data-sets 700000   # two CPU cores that know bfloat16: 2 hours
    python -m autotune.pfn.train --data-sets 10000000 --device cuda   # one GPU: ten minutes
    python -m autotune.pfn.train --begin-with weights.safetensors --seed 1 --rate 1e-3   # further

It may be stopped at any moment: the same command goes on from the last evaluation, and weights
are written at each one. The data of step k depend only on the seed and k.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autotune.pfn import evaluation, histogram, training_data, weights
from autotune.pfn.network import CurveNetwork, Size
from autotune.pfn.training_data import Examples

RATE = 2e-3
WARM_UP = 0.03
DECAY = 0.5
AVERAGE = 0.999

_STREAM = 1_000_003


@dataclass(frozen=True)
class Plan:
    """What a training run does.

    Args:
        data_sets: artificial studies to draw in all; may be changed on resuming.
        tokens: a step's, about.
        rate: the highest learning rate, of both optimizers.
        begin_with: weights to begin with, which have not seen the data of this seed.
    """

    data_sets: int
    tokens: int
    rate: float
    seed: int
    size: Size
    device: torch.device
    begin_with: Path | None = None


class Training:
    """A training run: network, average of its weights, optimizers, and how far it is."""

    def __init__(self, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.network = CurveNetwork(plan.size).to(plan.device)
        self.begun_with: dict[str, Any] | None = None
        if plan.begin_with is not None:
            self.network.load_state_dict(weights.load(plan.begin_with).state_dict())
            self.begun_with = weights.read_header(plan.begin_with)["card"]
        self.average = CurveNetwork(plan.size).to(plan.device)
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            hidden = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if hidden else others).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices,
                lr=plan.rate,
                weight_decay=0.01,
                momentum=0.95,
                nesterov=True,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.step = 0
        self.data_sets = 0
        self.seconds = 0.0

    def advance(self) -> float:
        """One optimizer step; returns its mean log-likelihood."""
        began = time.perf_counter()
        examples = self._examples()
        factor = rate_factor(self.data_sets / self.plan.data_sets)
        device = self.plan.device
        with torch.autocast(device.type, torch.bfloat16, enabled=halves(device)):
            memory = self.network.remember(examples.context, examples.mask)
            logits = self.network.forecast(memory, examples.query, examples.horizon)
        loss = -histogram.log_density(logits.float(), examples.target).mean()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.plan.rate * factor
            optimizer.step()
        self.step += 1
        # Young averages forget faster, or they would be of the first weights.
        keep = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.network.parameters()), 1 - keep
            )
        self.data_sets += len(examples.context)
        found = -float(loss.detach())
        self.seconds += time.perf_counter() - began
        return found

    def _examples(self) -> Examples:
        seed = self.plan.seed * _STREAM + self.step
        shapes = torch.Generator().manual_seed(seed)
        shape = training_data.chosen_shape(shapes)
        generator = torch.Generator(self.plan.device).manual_seed(seed)
        return training_data.draw(shape, self.plan.tokens, generator)

    def state(self) -> dict[str, Any]:
        """Everything to go on from."""
        return {
            "size": self.plan.size.to_plain(),
            "seed": self.plan.seed,
            "begun_with": self.begun_with,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "data_sets": self.data_sets,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: if it is another run's, by size, seed or the weights it began with.
        """
        for name, mine in (("size", self.plan.size.to_plain()), ("seed", self.plan.seed)):
            if state[name] != mine:
                raise ValueError(
                    f"the run to resume has {name} {state[name]}, this command asks for {mine}: "
                    "give another --folder to begin anew"
                )
        if state.get("begun_with", self.begun_with) != self.begun_with:
            raise ValueError(
                "the run to resume began with other weights than this command's --begin-with: "
                "give another --folder to begin anew"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.data_sets = state["step"], state["data_sets"]
        self.seconds = state["seconds"]


def halves(device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16: a processor that has no instructions for it is
    ten times faster in float32."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rate_factor(done: float) -> float:
    """Share of the highest learning rate when the share `done` of the data is drawn: linear
    warm-up, flat, linear to 0."""
    return max(0.0, min(1.0, done / WARM_UP + 0.02, (1.0 - done) / DECAY))


def run(
    training: Training, folder: Path, every: int, output: Path, tell: Callable[[str], None]
) -> None:
    """Train to the end of the plan; at every evaluation write state and weights.

    Args:
        folder: for the state and the log of evaluations.
        every: steps between evaluations.
        output: file of the weights; their model card is written beside it.
    """
    held = evaluation.held_out(training.plan.device)
    for recent in _parts(training, every):
        scores = evaluation.evaluate(training.average, held)
        line = {
            "step": training.step,
            "data_sets": training.data_sets,
            "minutes": round(training.seconds / 60, 2),
            "train_log_likelihood": round(recent, 4),
            **scores.to_plain(),
        }
        card = {
            "data_sets": training.data_sets,
            "of_data_sets": training.plan.data_sets,
            "minutes": round(training.seconds / 60, 1),
            "hardware": _hardware(training.plan.device),
            "seed": training.plan.seed,
            "held_out": scores.to_plain(),
        }
        if training.begun_with is not None:
            card["begun_with"] = training.begun_with
        weights.save(output, training.average, card)
        output.with_suffix(".md").write_text(weights.model_card(output), encoding="utf-8")
        temporary = folder / "state.partial"
        torch.save(training.state(), temporary)
        temporary.replace(folder / "state.pt")
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        tell(json.dumps(line))


def _parts(training: Training, every: int) -> Iterator[float]:
    """Trains; yields the mean log-likelihood after every part of `every` steps."""
    while training.data_sets < training.plan.data_sets:
        found: list[float] = []
        while len(found) < every and training.data_sets < training.plan.data_sets:
            found.append(training.advance())
        yield sum(found) / len(found)


def _seeds(card: dict[str, Any]) -> set[int]:
    """Seeds of all the data that weights have seen."""
    begun_with = card.get("begun_with")
    return {card["seed"]} | (set() if begun_with is None else _seeds(begun_with))


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    precision = "bfloat16" if halves(device) else "float32"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {precision}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m autotune.pfn.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Size()
    parser.add_argument("--data-sets", type=int, default=700_000, help="studies to draw in all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path("pfn_training"), help="for the state")
    parser.add_argument("--output", type=Path, help="weights; default FOLDER/weights.safetensors")
    parser.add_argument("--width", type=int, default=default.width)
    parser.add_argument("--layers", type=int, default=default.layers)
    parser.add_argument("--tokens", type=int, help="a step's; default 8192, on a GPU 70000")
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--every", type=int, default=400, help="steps between evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--begin-with",
        type=Path,
        metavar="WEIGHTS",
        help="train these weights further, in their size: give a --seed whose data they have not "
        "seen, and a lower --rate",
    )
    arguments = parser.parse_args()
    output = arguments.output or arguments.folder / "weights.safetensors"
    if not hasattr(torch.optim, "Muon"):
        parser.error(
            f"training needs torch 2.9 or newer for its optimizer; this is {torch.__version__}"
        )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        # It would plan every new shape for seconds; the flash kernels need no plan.
        torch.backends.cuda.enable_cudnn_sdp(False)
    size = Size(width=arguments.width, layers=arguments.layers)
    if arguments.begin_with is not None:
        try:
            header = weights.read_header(arguments.begin_with)
        except ValueError as error:
            parser.error(f"--begin-with: {error}")
        size = Size(**header["size"])
        if arguments.seed in _seeds(header["card"]):
            parser.error(
                f"--begin-with {arguments.begin_with}: these weights have seen the data of seed "
                f"{arguments.seed}: give another --seed"
            )
        if output.resolve() == arguments.begin_with.resolve():
            parser.error(f"--begin-with: weights would be written over {output}: give --output")
    plan = Plan(
        arguments.data_sets,
        arguments.tokens or (70_000 if device.type == "cuda" else 8192),
        arguments.rate,
        arguments.seed,
        size,
        device,
        arguments.begin_with,
    )
    training = Training(plan)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    saved = arguments.folder / "state.pt"
    if saved.exists():
        state = torch.load(saved, map_location=device, weights_only=True)
        try:
            training.load(state)
        except ValueError as error:
            parser.error(f"{saved}: {error}")
        print(f"going on at {training.data_sets} data sets", flush=True)
    run(training, arguments.folder, arguments.every, output, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
