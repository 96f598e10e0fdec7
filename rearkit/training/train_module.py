"""The forward pass of training: from a batch to its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rearkit.context_noise import check_replacements, predictions, replaced
from rearkit.contracts import TrainingStep
from rearkit.data.pixels import to_float
from rearkit.model import Model
from rearkit.registry.contract import blaming
from rearkit.training.batches import Batch


class TrainModule(nn.Module):
    """Backbone and objective in one module, since DeepSpeed wraps a single one."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.objective = model.objective
        self.noise = model.noise
        self.prefix_length = model.backbone.prefix_length
        self.codebook_size = model.space.codebook_size
        self._checked = False

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise and its named parts."""
        context_BN = self._context(batch)
        # Else the backbone's tables fail, on a GPU without a word about where. There, only the first step is looked at,
        # since that waits for the GPU.
        if context_BN.device.type == "cpu" or not self._checked:
            check_replacements(context_BN, batch.replaced_BN, self.noise, self.codebook_size)
            self._checked = True
        with blaming(self.backbone):
            logits, hidden = self.backbone(context_BN, batch.classes_B, self.objective.layers)
            logits_BNV = predictions(logits, batch.tokens_BN)
        step = TrainingStep(
            tokens_BN=batch.tokens_BN,
            replaced_BN=batch.replaced_BN,
            prefix_length=self.prefix_length,
            hidden=hidden,
            context_BN=context_BN,
            classes_B=batch.classes_B,
            progress=batch.progress,
            logits_BNV=logits_BNV,
            images=None if batch.images is None else to_float(batch.images),
            backbone=self.backbone,
        )
        loss = self.objective.loss(step)
        return loss.total, loss.parts

    @torch.no_grad()
    def _context(self, batch: Batch) -> Tensor:
        """Return what the model reads, after a first pass over clean tokens if replacements depend on that."""
        if batch.draw is None:
            return batch.context_BN
        # Here, in the module's forward pass, since ZeRO stage 3 gathers weights only there.
        with blaming(self.backbone):
            logits, _ = self.backbone(batch.tokens_BN, batch.classes_B)
            logits_BNV = predictions(logits, batch.tokens_BN)
        return replaced(batch.tokens_BN, batch.draw, self.noise, batch.progress, logits_BNV)
