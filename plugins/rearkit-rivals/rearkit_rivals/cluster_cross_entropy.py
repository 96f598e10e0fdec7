"""The cluster-oriented cross-entropy of IAR: predict at least the right cluster of codes.

Hu et al. 2025, "Improving Autoregressive Visual Generation with Cluster-Oriented Token Prediction" (arXiv 2501.00880),
section 3: the codebook is divided into clusters of equal size by balanced k-means, and the loss is L = L_TCE + λ·L_CCE,
where L_CCE is the cross-entropy of the cluster, whose probability is the sum over its codes.

The paper also renumbers the codes so that clusters are contiguous. That makes a cluster's sum a slice and changes
nothing else, since embedding and output rows are learnt; here the codes keep their numbers, and sampling its.

Not known to us and chosen: the number of clusters (the square root of V), the first centroids (codes drawn by a seed),
and how a full cluster turns codes away (`rearkit_rivals.codes.balanced_assignment`; the paper's too is nearest first).

Shapes: B batch, N tokens, V codes, C clusters, S codes of a cluster.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rearkit import setting, settings
from rearkit.contracts import Regularizer, RegularizerContext, TrainingStep
from rearkit_rivals.codes import METRICS, balanced_clusters, comparable


@settings
class ClusterCrossEntropySettings:
    """Add the cross-entropy of the true code's cluster (IAR)."""

    clusters: int | None = setting("C, clusters of codes; left out: the square root of V", default=None, ge=1)
    metric: str = setting("distance between embeddings", default="euclidean", choices=METRICS)
    seed: int = setting("of the clusters' first centroids", default=0, ge=0)
    weight: float = setting("λ, factor of this loss in the total", default=1.0, ge=0)


class ClusterCrossEntropy(Regularizer):
    """The regularizer; see the module docstring.

    Raises:
        ValueError: there are more clusters than codes.
    """

    reads = ("logits_BNV",)
    labels_V: Tensor
    members_CS: Tensor

    def __init__(self, settings: ClusterCrossEntropySettings, context: RegularizerContext) -> None:
        super().__init__()
        self.weight = settings.weight
        codes = len(context.codebook_VZ)
        clusters = settings.clusters or max(1, round(math.sqrt(codes)))
        if clusters > codes:
            raise ValueError(f"clusters = {clusters}: more than the {codes} codes of the codebook")
        codebook_VZ = comparable(context.codebook_VZ, settings.metric)
        labels_V = balanced_clusters(codebook_VZ, clusters, settings.seed)
        # Saved with the run: on another machine, rounding might divide the codes otherwise.
        self.register_buffer("labels_V", labels_V)
        self.register_buffer("members_CS", _members(labels_V, clusters))

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        """Return ``{"cluster": …}``: -log Σ_{v in the true code's cluster} p(v), averaged over all B·N tokens.

        With logits z, it is log Σ_v exp z_v over all codes, less the same over the cluster's.
        """
        assert step.logits_BNV is not None
        logits_BNV = step.logits_BNV.float()
        members_BNS = self.members_CS[self.labels_V[step.tokens_BN]]
        inside_BNS = logits_BNV.gather(-1, members_BNS.clamp(min=0)).masked_fill(members_BNS < 0, -torch.inf)
        return {"cluster": (logits_BNV.logsumexp(-1) - inside_BNS.logsumexp(-1)).mean()}


def _members(labels_V: Tensor, clusters: int) -> Tensor:
    """Return the codes of each cluster, (C, S) int64; -1 fills up the clusters that have one code less."""
    codes = len(labels_V)
    size = -(-codes // clusters)
    members_CS = labels_V.new_full((clusters, size), -1)
    if labels_V.is_meta:
        return members_CS
    for cluster in range(clusters):
        own = (labels_V == cluster).nonzero().flatten()
        members_CS[cluster, : len(own)] = own
    return members_CS
