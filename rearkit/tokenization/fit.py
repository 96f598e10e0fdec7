"""Fitting a tokenizer with AdamW on the loss that it defines, with warm-up and a cosine; a fit can be resumed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rearkit.contracts import FittableTokenizer
from rearkit.errors import DivergedError, first_line
from rearkit.recipe.tables import FitTable
from rearkit.system import distributed
from rearkit.system.console import progress_bar, say
from rearkit.system.devices import seed_everything
from rearkit.system.files import remove, replacing

# The last learning rate, as a share of the peak.
END_FACTOR = 0.05


def learning_rate(fit: FitTable, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to a twentieth of the peak."""
    # Step 0 does not get a rate of 0, with which it would be wasted.
    warm = min(1.0, (step + 1) / fit.warmup_steps) if fit.warmup_steps else 1.0
    return fit.lr * warm * (END_FACTOR + (1 - END_FACTOR) * (1 + math.cos(math.pi * step / fit.steps)) / 2)


class TokenizerFit:
    """A fit in progress.

    Args:
        tokenizer: the tokenizer, fitted in place.
        fit: the settings.
        seed: seed of the random numbers that the tokenizer draws.
        checkpoint: file to resume from and to save to, or None.
    """

    def __init__(self, tokenizer: FittableTokenizer, fit: FitTable, seed: int, checkpoint: Path | None = None) -> None:
        self.tokenizer = tokenizer
        self.fit = fit
        self.seed = seed
        self.checkpoint = checkpoint
        tokenizer.requires_grad_(True)
        parameters = [p for p in tokenizer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=fit.lr, betas=(0.9, 0.99), weight_decay=fit.weight_decay)
        self.step = 0
        self.history: list[dict[str, float]] = []
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)

    def run(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Take the remaining steps. All ranks must call this, and each takes its share of a batch.

        Args:
            batches: begins with the batch of step `step`; only the first rank's is read.

        Raises:
            DivergedError: a loss was not finite; no checkpoint is written after that.
        """
        self.tokenizer.train()
        with progress_bar("tokenizer: fit", self.fit.steps, self.step) as bar:
            while self.step < self.fit.steps:
                images = distributed.from_main(lambda: next(batches)[0])
                # At each step, so that a resumed fit draws the same random numbers.
                seed_everything(self.seed, self.step)
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(self.fit, self.step)
                losses = self._step(images)
                self.step += 1
                self.history.append({"step": float(self.step), **losses})
                if not math.isfinite(losses["loss"]):
                    raise DivergedError(
                        f"[tokenizer.fit]: the loss of step {self.step} was {losses['loss']}; fit at a lower lr than "
                        f"{self.fit.lr}"
                    )
                bar.advance(1, f"loss {losses['loss']:.4f}")
                # All ranks have the same weights, and so the same checkpoint.
                due = self.step % self.fit.checkpoint_every == 0 and distributed.rank() == 0
                if self.checkpoint is not None and due:
                    self._save(self.checkpoint)
        self.tokenizer.eval().requires_grad_(False)

    def _step(self, images: Tensor) -> dict[str, float]:
        """Take a step on a batch, which the ranks share; return the loss and its parts."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        own = images.tensor_split(distributed.world_size())[distributed.rank()]
        weight = len(own) / len(images)
        self.optimizer.zero_grad()
        with distributed.divided_batch():
            loss, parts = self.tokenizer.fit_loss(own.to(parameters[0].device))
            loss.backward()
            named = {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}
            if distributed.several():
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad = distributed.summed(parameter.grad * weight)
                named = {name: distributed.summed(value.to(loss) * weight) for name, value in named.items()}
        torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), 1.0)
        self.optimizer.step()
        return {name: value.item() for name, value in named.items()}

    def finish(self) -> None:
        """Remove the checkpoint. Call this after the weights are saved elsewhere."""
        if self.checkpoint is not None:
            remove(self.checkpoint)

    def _save(self, path: Path) -> None:
        # All buffers, even those that a state dict leaves out, since the fit may depend on them.
        state = {
            "parameters": dict(self.tokenizer.named_parameters()),
            "buffers": dict(self.tokenizer.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def _load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # Unpickling damaged bytes can raise any exception.
            say(f"tokenizer: {path} is damaged ({first_line(error)}); the fit starts anew")
            return
        with torch.no_grad():
            for name, parameter in self.tokenizer.named_parameters():
                parameter.copy_(state["parameters"][name])
            for name, buffer in self.tokenizer.named_buffers():
                buffer.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history = state["step"], state["history"]
        say(f"tokenizer: going on from step {self.step} of {self.fit.steps}")
