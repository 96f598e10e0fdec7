"""Self-guided training (ST-AR): hidden states that agree with a slowly moving copy of the model.

Yue et al. 2025, "Understand Before You Generate: Self-Guided Training for Autoregressive Image Generation" (arXiv
2509.15185). A teacher of the same architecture follows the weights as a moving average and gets no gradient (section
3.3). Three terms are added to the token loss (Eq. 8): L = L_AR + α·L_MIM + β·(L_step + L_view)/2.

- L_step (Eq. 6): a projection of the student's state at one of K random positions should be nearer to the teacher's
  states at the other positions of the same image than to those of other images.
- L_view (Eq. 7): the same, with the teacher's state at the same position of another view of the image.
- L_MIM (Eq. 4): cosine distance of the last block's states, where the student cannot attend to a quarter of the tokens.

From the paper: α = 1, β = 0.5, K = 4, decay 0.9999, contrast at half the depth, negatives of the batch, a projector
(MLP) on the student's side alone. Where this differs from the paper:

- Views. The paper encodes two augmented crops of each image; a step here has one row of tokens for each. The student
  reads the context with its noise, and the teacher the clean tokens, so the two "views" differ by the noise.
- Masked attention. Backbones take no attention mask. The replaced tokens of the context stand for the masked ones: with
  noise ``mask-token``, ``schedule = "fixed"`` and ``level = 0.25``, as many tokens are hidden from the student as in
  the paper. Without noise, both read the same, and what is left of L_MIM is the distance to the average.

Not said in the paper, or not known to us, and chosen: the temperature (0.2), cosine similarity, the projector's depth
and width, the position of negatives (that of the positive). Negatives come from the micro-batch of a rank, so the loss
depends on its size.

Shapes: B batch, N tokens, K positions that are drawn, D width of the backbone.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import setting, settings
from rearkit.contracts import Backbone, Regularizer, RegularizerContext, StepTaken, TrainingStep


@settings
class SelfGuidedSettings:
    """Tie hidden states to those of an averaged teacher, across positions and views (ST-AR)."""

    layer: int | None = setting(
        "block, counted from 0, whose states are contrasted; left out: the last of the lower half", default=None, ge=0
    )
    positions: int = setting("K, positions that are drawn for each micro-batch", default=4, ge=1)
    temperature: float = setting("by which similarities are divided", default=0.2, gt=0)
    projection_dim: int = setting("width of the projector's two hidden layers", default=2048, ge=1)
    decay: float = setting("share of the teacher's weights that each step keeps", default=0.9999, ge=0, le=1)
    align: float = setting("α, factor of the distance between the last block's states", default=1.0, ge=0)
    contrast: float = setting("β, factor of the mean of the two contrastive terms", default=0.5, ge=0)
    weight: float = setting("factor of the sum of these terms in the total", default=1.0, ge=0)


class SelfGuided(Regularizer):
    """The regularizer; see the module docstring.

    Raises:
        ValueError: the layer is not in the backbone, or no backbone is given.
    """

    def __init__(self, settings: SelfGuidedSettings, context: RegularizerContext) -> None:
        super().__init__()
        if context.backbone is None:
            raise ValueError("needs the backbone: build it with RegularizerContext(backbone=…)")
        self.settings = settings
        self.weight = settings.weight
        self.last = context.num_layers - 1
        # "The 6th layer" of 12, counted from 1.
        self.layer = max(0, context.num_layers // 2 - 1) if settings.layer is None else settings.layer
        if self.layer > self.last:
            raise ValueError(f"layer {self.layer} is not in the backbone, whose blocks are 0 to {self.last}")
        self.layers = sorted({self.layer, self.last} if settings.align else {self.layer})
        width = settings.projection_dim
        self.projector = nn.Sequential(
            nn.Linear(context.hidden_size, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, context.hidden_size),
        )
        self.teacher: Backbone = copy.deepcopy(context.backbone).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SelfGuided:
        """Set the mode of the projector; the teacher stays in eval mode, without dropout."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        """Return ``{"step": …, "view": …, "align": …}``, each with its factor of Eq. 8."""
        if step.classes_B is None:
            raise ValueError("self-guided needs the classes that the backbone read: TrainingStep(classes_B=…)")
        with torch.no_grad():
            _, taught = self.teacher(step.tokens_BN, step.classes_B, self.layers)
        # The positions that predict tokens, which are the inputs of the paper's T steps.
        places = slice(step.prefix_length - 1, -1)
        chosen_K = self._positions(step.tokens_BN)
        states_BKD = step.hidden[self.layer][:, places][:, chosen_K]
        across, same = contrastive(
            self.projector(states_BKD), taught[self.layer][:, places][:, chosen_K], self.settings.temperature
        )
        half = self.settings.contrast / 2
        terms = {"step": half * across, "view": half * same}
        if self.settings.align:
            pairs = (states[self.last][:, places].float() for states in (step.hidden, taught))
            terms["align"] = self.settings.align * (1 - F.cosine_similarity(*pairs, dim=-1)).mean()
        return terms

    def after_step(self, step: StepTaken) -> None:
        """Move the teacher: θ' = d·θ' + (1 - d)·θ."""
        step.average(self.teacher, step.backbone, self.settings.decay)

    def _positions(self, tokens_BN: Tensor) -> Tensor:
        """Draw K positions, (K,) int64, the same for the whole micro-batch; in eval mode they are evenly spaced."""
        count, N = min(self.settings.positions, tokens_BN.shape[1]), tokens_BN.shape[1]
        if self.training:
            # From torch's own generator, which a run seeds at each step.
            return torch.randperm(N, device=tokens_BN.device)[:count]
        return torch.arange(count, device=tokens_BN.device) * N // count


def contrastive(student_BKD: Tensor, teacher_BKD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return Eq. 6 and Eq. 7: InfoNCE with positives at the other positions, and with those at the same position.

    For a student's state at position i of image b and the teacher's at j, the loss is
    -log(exp(s(b, i, b, j)/τ) / Σ_c exp(s(b, i, c, j)/τ)), over the images c of the batch; s is the cosine. Eq. 6 is its
    mean over i ≠ j (0 if there is one position), Eq. 7 that over i = j. Of one image, both are 0.
    """
    student_BKD = F.normalize(student_BKD.float(), dim=-1)
    teacher_BKD = F.normalize(teacher_BKD.float(), dim=-1)
    similarity_KKBB = torch.einsum("bid,cjd->ijbc", student_BKD, teacher_BKD) / temperature
    losses_KK = -similarity_KKBB.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1)
    count = len(losses_KK)
    same = losses_KK.diagonal().sum()
    return (losses_KK.sum() - same) / max(1, count * (count - 1)), same / count
