"""Vector quantization: nearest code; a codebook fitted by moving averages (van den Oord et al. 2017, appendix A.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.system.distributed import from_first, joined, summed


class VectorQuantizer(nn.Module):
    """A codebook `embedding` (V, Z), whose row v is the vector of code v; a part for tokenizers.

    During a fit, each code follows the mean of the vectors that chose it. A code that hardly any vector chooses moves
    to a random vector of the batch, so that in the end the whole codebook is used. Where ranks share a batch, the
    codebook follows all of it.

    Args:
        codebook_size: V.
        embedding_dim: Z.
        decay: decay of the moving averages, in [0, 1).
        normalised: whether vectors and codes are scaled to length 1 wherever they are used (`embedding` itself is not).
    """

    cluster_size_V: Tensor
    cluster_sum_VZ: Tensor

    def __init__(self, codebook_size: int, embedding_dim: int, decay: float = 0.97, normalised: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, embedding_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        self.decay = decay
        self.normalised = normalised
        # Only a fit needs them, and its checkpoint saves them: published layouts don't have them.
        self.register_buffer("cluster_size_V", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("cluster_sum_VZ", torch.zeros(codebook_size, embedding_dim), persistent=False)

    def scaled(self, x_BNZ: Tensor) -> Tensor:
        """Return (…, Z) vectors, scaled to length 1 if this quantizer is `normalised`."""
        return F.normalize(x_BNZ, dim=-1) if self.normalised else x_BNZ

    def codebook(self) -> Tensor:
        """Return the vectors of the codes, (V, Z)."""
        return self.scaled(self.embedding.weight)

    def nearest(self, x_BNZ: Tensor) -> Tensor:
        """Return the codes at the least Euclidean distance from (B, N, Z) vectors, (B, N) int64."""
        codebook_VZ = self.codebook()
        # Features are narrower than the codes under a caller's autocast.
        x_MZ = self.scaled(x_BNZ.to(codebook_VZ.dtype)).reshape(-1, x_BNZ.shape[-1])
        return self._distances(x_MZ, codebook_VZ).argmin(1).view(x_BNZ.shape[:-1])

    def entropy_penalty(self, x_BNZ: Tensor, temperature: float) -> Tensor:
        """Return how undecided vectors are between codes, less how evenly they use them, in nats; a scalar.

        It is E[H(p)] - H(E[p]) with p the softmax of the negated squared distances over `temperature` (Yu et al. 2024,
        MAGVIT-v2, equation 5). Gradients reach the vectors, not the codes.
        """
        x_MZ = self.scaled(x_BNZ.float()).reshape(-1, x_BNZ.shape[-1])
        log_p_MV = (-self._distances(x_MZ, self.codebook().detach()) / temperature).log_softmax(1)
        p_MV = log_p_MV.exp()
        mean_V = p_MV.mean(0)
        # Of the whole batch; the part that has a gradient is this rank's. The derivative of -H(m) is log m · dm, since
        # shares sum to 1, so the mean over the ranks has the value and the gradient of the whole.
        whole_V = summed(mean_V.detach() * len(x_MZ)) / summed(torch.tensor(float(len(x_MZ)), device=x_MZ.device))
        undecided = -(p_MV * log_p_MV).sum(1).mean()
        return undecided + (whole_V.clamp(min=1e-12).log() * mean_V).sum()

    @staticmethod
    def _distances(x_MZ: Tensor, codebook_VZ: Tensor) -> Tensor:
        """Return squared distances (M, V) of vectors to codes."""
        with torch.autocast(x_MZ.device.type, enabled=False):
            # |x - e|² = |x|² + |e|² - 2 x·e, summed in the published code's order, so that near ties get the same code.
            norms_MV = x_MZ.pow(2).sum(1, keepdim=True) + codebook_VZ.pow(2).sum(1)
            return torch.addmm(norms_MV, x_MZ, codebook_VZ.t(), alpha=-2.0)

    def forward(self, x_BNZ: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize with straight-through gradients; in training mode, also move the codebook.

        Returns:
            (B, N, Z) code vectors, and (B, N) int64 codes.
        """
        # In float32 under autocast too: distances of near codes differ by less than bf16 can tell.
        x_BNZ = self.scaled(x_BNZ.float())
        if self.training:
            self._start_from_data(x_BNZ)
        tokens_BN = self.nearest(x_BNZ)
        codes_BNZ = self.codebook()[tokens_BN].detach()
        if self.training:
            self._follow(x_BNZ, tokens_BN)
        # The value of the codes with the gradient of the features (straight-through).
        return x_BNZ + (codes_BNZ - x_BNZ).detach(), tokens_BN

    def share_used(self, tokens_BN: Tensor) -> Tensor:
        """Return the share of the codes that a batch of tokens uses (of all ranks where they share it), in [0, 1]."""
        used_V = summed(tokens_BN.flatten().bincount(minlength=len(self.embedding.weight))) > 0
        return used_V.float().mean()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a codebook; a fit goes on from it, as if each code had been chosen once."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if (loaded := state_dict.get(f"{prefix}embedding.weight")) is not None:
            with torch.no_grad():
                self.cluster_size_V.fill_(1.0)
                self.cluster_sum_VZ.copy_(loaded)

    def _dead_below(self) -> Tensor:
        """Return the use below which a code counts as dead: a hundredth of the mean."""
        return self.cluster_size_V.mean() * 0.01

    @torch.no_grad()
    def _start_from_data(self, x_BNZ: Tensor) -> None:
        # Only at the first step of a fit, when the averages are still zero.
        if self.cluster_size_V.any():
            return
        self.embedding.weight.copy_(self._random_vectors(x_BNZ, len(self.cluster_size_V)))
        self.cluster_size_V.fill_(1.0)
        self.cluster_sum_VZ.copy_(self.embedding.weight)

    @torch.no_grad()
    def _follow(self, x_BNZ: Tensor, tokens_BN: Tensor) -> None:
        x_MZ = x_BNZ.detach().flatten(0, 1)
        tokens_M = tokens_BN.flatten()
        sizes_V = summed(torch.bincount(tokens_M, minlength=len(self.cluster_size_V)).to(x_MZ))
        sums_VZ = summed(torch.zeros_like(self.cluster_sum_VZ).index_add_(0, tokens_M, x_MZ))
        self.cluster_size_V.lerp_(sizes_V, 1 - self.decay)
        self.cluster_sum_VZ.lerp_(sums_VZ, 1 - self.decay)
        dead_V = self.cluster_size_V <= self._dead_below()
        if dead_V.any():
            fresh = self._random_vectors(x_BNZ, int(dead_V.sum()))
            size = self.cluster_size_V.mean()
            # As if it were used as much as the mean code, so that it is not dead again at the next step.
            self.cluster_size_V[dead_V] = size
            self.cluster_sum_VZ[dead_V] = fresh * size
        # The clamp guards against a division by zero.
        self.embedding.weight.copy_(self.cluster_sum_VZ / self.cluster_size_V.clamp(min=1e-5)[:, None])

    @staticmethod
    def _random_vectors(x_BNZ: Tensor, count: int) -> Tensor:
        x_MZ = joined(x_BNZ.detach().flatten(0, 1))
        # The first rank's choice, since the others' random numbers may differ by now.
        return from_first(x_MZ[torch.randint(len(x_MZ), (count,), device=x_MZ.device)])
