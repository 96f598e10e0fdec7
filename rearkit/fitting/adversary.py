"""The discriminator of a tokenizer's fit: PatchGAN with the hinge loss, weighted as in VQGAN (Esser et al. 2021).

It differs from VQGAN's in one thing: its norms are over groups of channels, not over the batch, so that the result
does not depend on how ranks share a batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.contracts import FitPass
from rearkit.errors import DivergedError
from rearkit.fitting.shared_steps import take_step
from rearkit.recipe.fit_table import AdversarialTable
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import derive_seed
from rearkit.training.guards import poisoned

# Channels grow up to so many times those of the first convolution.
MOST_CHANNELS = 8
NORM_GROUPS = 8
# The adaptive weight's upper limit, and what keeps its divisor from zero (VQGAN's code).
MOST_ADAPTIVE = 1e4
TINY = 1e-4
# Of the averages that LeCam compares with (Tseng et al. 2021, section 4).
LECAM_DECAY = 0.99


def most_layers(side: int) -> int:
    """Return the most ``layers`` of a discriminator of images of a side; 0 if it needs larger ones."""
    # Of what the halvings leave, each of the last two convolutions takes one more.
    return max(0, (side // 3).bit_length() - 1)


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of an image (Isola et al. 2017).

    Args:
        channels: of the first convolution; a multiple of 8.
        layers: convolutions that halve the side.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        widths = [channels * min(2**i, MOST_CHANNELS) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            # The last one keeps the side.
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False)]
            parts += [nn.GroupNorm(NORM_GROUPS, widths[i]), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, images_B3RR: Tensor) -> Tensor:
        """Judge images in [0, 1]: (B, 1, h, w), the higher, the more a patch looks like a photograph's."""
        judged: Tensor = self.layers(images_B3RR * 2 - 1)
        return judged.float()


class Adversary:
    """A discriminator and its optimizer.

    Args:
        table: the settings.
        seed: of its weights.
        device: to put it on.

    Attributes:
        skipped: its steps that were skipped since the start or the resume.
    """

    def __init__(self, table: AdversarialTable, seed: int, device: torch.device) -> None:
        self.table = table
        # Beside the global generator, whose numbers the tokenizer's fit draws.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "adversary"))
            self.discriminator = PatchDiscriminator(table.channels, table.layers)
        self.discriminator.to(device)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=table.lr, betas=(0.5, 0.9))
        # Averages of its judgement on real and on rebuilt images, for LeCam.
        self.usual = torch.zeros(2, device=device)
        self.skipped = 0
        self._norm = 0.0

    def opinion(self, passed: FitPass, loss: Tensor, share: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the term of the tokenizer's loss, weighted, and parts for the log.

        Args:
            passed: the tokenizer's pass.
            loss: the other terms, with which the weight is balanced.
            share: this rank's share of the batch.
        """
        self.discriminator.requires_grad_(False)
        term = -self.discriminator(passed.rebuilt_B3RR).mean()
        weight = torch.tensor(self.table.weight, device=term.device)
        if self.table.adaptive:
            # λ = |∇ other terms| / |∇ adversarial term| in the decoder's last weights (VQGAN, equation 7).
            both = [torch.autograd.grad(value, passed.last_weight, retain_graph=True)[0] for value in (loss, term)]
            others, own = (distributed.summed(gradient.float() * share).norm() for gradient in both)
            weight = weight * (others / (own + TINY)).clamp(max=MOST_ADAPTIVE)
        return weight * term, {"adversarial": term, "adversarial_weight": weight}

    def set_rate(self, factor: float) -> None:
        """Set the learning rate, as a share of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.table.lr * factor

    def learn(self, real: Tensor, rebuilt: Tensor, share: float, precision: str) -> dict[str, Tensor]:
        """Take a step of the discriminator, or skip it where its gradient is not finite; return parts for the log.

        All ranks must call this, and all skip the same steps. `after_step` says so.

        Args:
            real: this rank's images, (B, 3, R, R) in [0, 1].
            rebuilt: the same as they come back, without gradient.
            share: this rank's share of the batch.
            precision: of the fit.
        """
        self.discriminator.requires_grad_(True)
        seen = real.detach().requires_grad_(self.table.r1 > 0)
        with torch.autocast(real.device.type, torch.bfloat16, enabled=precision == "bf16"):
            judged_real, judged_rebuilt = self.discriminator(seen), self.discriminator(rebuilt)
        hinge = (F.relu(1 - judged_real).mean() + F.relu(1 + judged_rebuilt).mean()) / 2
        loss = hinge
        if self.table.r1:
            # Mescheder et al. 2018: half the squared gradient of the judgement on real images.
            (gradient,) = torch.autograd.grad(judged_real.mean((1, 2, 3)).sum(), seen, create_graph=True)
            loss = loss + self.table.r1 / 2 * gradient.float().square().sum((1, 2, 3)).mean()
        if self.table.lecam:
            loss = loss + self.table.lecam * self._lecam(judged_real, judged_rebuilt, share)
        # An infinite loss may have a finite gradient.
        self._norm = take_step(self.optimizer, poisoned(loss), share)
        self.skipped += not math.isfinite(self._norm)
        right = ((judged_real > 0).float().mean() + (judged_rebuilt < 0).float().mean()) / 2
        skipped = torch.tensor(float(self.skipped), device=loss.device)
        return {"discriminator": hinge, "discriminator_right": right, "discriminator_skipped": skipped}

    def after_step(self, step: int) -> None:
        """Say that the discriminator's last step was skipped, if it was.

        Args:
            step: the step's number, counted from 1.

        Raises:
            DivergedError: more were skipped than the recipe allows; raised on all ranks.
        """
        if math.isfinite(self._norm):
            return
        text = f"tokenizer: step {step}: the discriminator's loss or gradient is NaN or infinite"
        limit = self.table.max_skipped_steps
        if self.skipped > limit:
            raise DivergedError(
                f"{text}; {self.skipped} of its steps skipped, more than the {limit} that [tokenizer.fit.adversarial] "
                f"max_skipped_steps allows; lower its lr than {self.table.lr} or its r1, or fit in fp32; running again "
                "goes on from the last checkpoint"
            )
        say(f"{text}; its step is skipped ({self.skipped} of at most {limit})")

    def _lecam(self, real: Tensor, rebuilt: Tensor, share: float) -> Tensor:
        """Each judgement's distance from the other kind's average (Tseng et al. 2021, equation 5)."""
        means = torch.stack([real.detach().mean(), rebuilt.detach().mean()])
        means = distributed.summed(means * share)
        # One judgement that is not finite would stay in the averages, and have all later steps skipped.
        self.usual.lerp_(torch.where(means.isfinite(), means, self.usual), 1 - LECAM_DECAY)
        return (real - self.usual[1]).square().mean() + (self.usual[0] - rebuilt).square().mean()

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed fit needs."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "usual": self.usual,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.usual.copy_(state["usual"])
