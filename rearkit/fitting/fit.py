"""Fitting a tokenizer with AdamW, with warm-up and a cosine; a fit can be resumed, and ranks share its batches.

To the tokenizer's own loss come, where the recipe has them, a perceptual distance and a discriminator's opinion.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rearkit.contracts import FitPass, FittableTokenizer
from rearkit.data.image_sets import ImageBatches
from rearkit.errors import DivergedError, first_line, interruption
from rearkit.fitting.adversary import Adversary
from rearkit.fitting.perceptual import Perceptual
from rearkit.fitting.shared_steps import take_step
from rearkit.fitting.varied import varied
from rearkit.recipe.fit_table import FitTable
from rearkit.registry.contract import blaming
from rearkit.system import distributed
from rearkit.system.checksums import append_checksum, read_checked
from rearkit.system.console import progress_bar, say
from rearkit.system.devices import seed_everything
from rearkit.system.files import remove, replacing
from rearkit.system.signals import StopRequest
from rearkit.training.logs import TrainLog

# The last learning rate, as a share of the peak.
END_FACTOR = 0.05
# Lines of a log, at most: enough for a chart.
LOGGED = 1000


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
        perceptual: the distance that the settings ask for, if they do.
    """

    def __init__(
        self,
        tokenizer: FittableTokenizer,
        fit: FitTable,
        seed: int,
        checkpoint: Path | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.fit = fit
        self.seed = seed
        self.checkpoint = checkpoint
        self.perceptual = perceptual
        _set_trained(tokenizer, fit.part)
        self.parameters = [p for p in tokenizer.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(self.parameters, lr=fit.lr, betas=(0.9, 0.99), weight_decay=fit.weight_decay)
        self.adversary = None if fit.adversarial is None else Adversary(fit.adversarial, seed, self.device)
        # Of all parameters, a codebook without gradients too: it must lag as the encoder does.
        self.average = {name: p.detach().clone() for name, p in tokenizer.named_parameters()} if fit.ema_decay else {}
        self.step = 0
        self.place = (0, 0)
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)

    def run(self, batches: Iterator[tuple[Tensor, Tensor]], log: TrainLog | None = None) -> None:
        """Take the remaining steps. All ranks must call this, and each takes its share of a batch.

        Args:
            batches: begins with the batch of step `step`, as `ImageBatches` from `place` do; only the first rank's is
                read.
            log: gets the losses; the first rank's.

        Raises:
            DivergedError: a loss or a gradient was not finite; no checkpoint is written after that.
            Interrupted: the process got Ctrl-C or SIGTERM; a checkpoint was saved first.
        """
        self._set_modes()
        every = max(1, self.fit.steps // LOGGED)
        with StopRequest() as stop, progress_bar("tokenizer: fit", self.fit.steps, self.step) as bar:
            while self.step < self.fit.steps:
                images = distributed.from_main(lambda: next(batches)[0])
                if isinstance(batches, ImageBatches):
                    self.place = batches.place
                # At each step, so that a resumed fit draws the same random numbers.
                seed_everything(self.seed, self.step)
                values = self._step(varied(images, self.fit))
                self.step += 1
                bar.advance(1, f"loss {values['loss']:.4f}")
                if log is not None and (self.step % every == 0 or self.step == self.fit.steps):
                    log.write(self.step, values)
                stopped = distributed.most_over_ranks(stop.signal or 0)
                # All ranks have the same weights, and so the same checkpoint.
                # The last too, since what is found poor is taken under a lower floor.
                due = self.step % self.fit.checkpoint_every == 0 or self.step == self.fit.steps or stopped
                if self.checkpoint is not None and due and distributed.rank() == 0:
                    self._save(self.checkpoint)
                if stopped:
                    where = f"tokenizer: stopped at step {self.step} of {self.fit.steps}"
                    raise interruption(stopped, where, self.checkpoint is not None)
        self._take_average()
        self.tokenizer.eval().requires_grad_(False)

    def _step(self, images: Tensor) -> dict[str, float]:
        """Take a step on a batch, which the ranks share; return the loss and its parts."""
        own = images.tensor_split(distributed.world_size())[distributed.rank()].to(self.device)
        share = len(own) / len(images)
        rate = learning_rate(self.fit, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        adversary = None if self.adversary is None or self.step < self.adversary.table.start else self.adversary
        with distributed.divided_batch():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fit.precision == "bf16"):
                with blaming(self.tokenizer):
                    passed, parts = self._passed(own)
                loss = passed.loss
                if self.perceptual is not None:
                    parts["perceptual"] = self.perceptual(passed.rebuilt_B3RR, own)
                    loss = loss + self.perceptual.weight * parts["perceptual"]
                if adversary is not None:
                    term, told = adversary.opinion(passed, loss, share)
                    loss, parts = loss + term, parts | told
            norm = take_step(self.optimizer, loss, share)
            if adversary is not None:
                adversary.set_rate(rate / self.fit.lr)
                parts |= adversary.learn(own, passed.rebuilt_B3RR.detach(), share, self.fit.precision)
            named = {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}
            if distributed.several():
                named = {name: distributed.summed(value.to(loss) * share) for name, value in named.items()}
        values = {name: value.item() for name, value in named.items()}
        self._check(values["loss"], norm)
        if adversary is not None:
            adversary.after_step(self.step + 1)
        if self.average:
            now = [p.detach() for p in self.tokenizer.parameters()]
            # Lower at first, as in training, to forget the untrained weights.
            decay = min(self.fit.ema_decay, (2 + self.step) / (11 + self.step))
            torch._foreach_lerp_(list(self.average.values()), now, 1 - decay)
        return values

    def _passed(self, own: Tensor) -> tuple[FitPass, dict[str, Tensor]]:
        """Let the tokenizer take its pass; of one that only tells its loss, there are no images."""
        if tells_images(self.tokenizer):
            passed = self.tokenizer.fit_pass(own)
        else:
            passed = FitPass(*self.tokenizer.fit_loss(own), own, self.parameters[-1])
        for name, value in {"loss": passed.loss, **passed.parts}.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                found = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise TypeError(f"{name} of a fit's pass must be a scalar tensor; found {found}")
        if not passed.loss.requires_grad:
            raise ValueError("the loss of a fit's pass has no gradient, so that nothing would be fitted")
        return passed, dict(passed.parts)

    def _check(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss of step {self.step + 1} was {loss}"
        if math.isfinite(loss):
            what = f"a gradient of step {self.step + 1} was not finite"
        raise DivergedError(f"[tokenizer.fit]: {what}; fit at a lower lr than {self.fit.lr}")

    def _set_modes(self) -> None:
        if self.fit.part == "all":
            self.tokenizer.train()
            return
        # A quantizer in eval mode leaves its codebook as it is.
        self.tokenizer.eval()
        for module in self.tokenizer.decoder_modules():
            module.train()

    @torch.no_grad()
    def _take_average(self) -> None:
        for name, parameter in self.tokenizer.named_parameters():
            if name in self.average:
                parameter.copy_(self.average[name])

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
            "average": self.average,
            "adversary": None if self.adversary is None else self.adversary.state(),
            "step": self.step,
            "place": self.place,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)
            # torch's reader passes over damaged tensors.
            append_checksum(temporary)

    def _load(self, path: Path) -> None:
        try:
            content = io.BytesIO(read_checked(path))
            state = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            # Unpickling damaged bytes can raise any exception, where there is no checksum.
            say(f"tokenizer: {path} is damaged ({first_line(error)}); the fit starts anew")
            return
        with torch.no_grad():
            for name, parameter in self.tokenizer.named_parameters():
                parameter.copy_(state["parameters"][name])
            for name, buffer in self.tokenizer.named_buffers():
                buffer.copy_(state["buffers"][name])
            for name, average in self.average.items():
                average.copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary is not None:
            self.adversary.restore(state["adversary"])
        self.step = state["step"]
        # Checkpoints of 0.1 do not tell it.
        self.place = state.get("place", (0, self.step * self.fit.batch))
        say(f"tokenizer: going on from step {self.step} of {self.fit.steps}")


def tells_images(tokenizer: FittableTokenizer) -> bool:
    """Return whether a tokenizer's pass tells the images that come back, and not only the loss."""
    return type(tokenizer).fit_pass is not FittableTokenizer.fit_pass


def _set_trained(tokenizer: FittableTokenizer, part: str) -> None:
    tokenizer.requires_grad_(part == "all")
    if part == "decoder":
        for module in tokenizer.decoder_modules():
            module.requires_grad_(True)
