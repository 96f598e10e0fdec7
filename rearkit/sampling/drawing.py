"""The choice of a code from logits, and how strongly guidance acts on them at each token."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def guidance_scales(num_tokens: int, scale: float, power: float = 1.0, schedule: str = "power-cosine") -> list[float]:
    """Return the guidance scale at each token i of N, by the schedules of RAR's published sampler.

    ``power-cosine``: ``1 + (s-1)·(1-cos(π·(i/N)^p))/2``, from 1 towards s; ``linear``: ``1 + (s-1)·i/N``;
    ``constant``: s.
    """
    if schedule == "constant":
        return [float(scale)] * num_tokens
    shares = [i / num_tokens for i in range(num_tokens)]
    if schedule == "power-cosine":
        shares = [(1 - math.cos(math.pi * share**power)) / 2 for share in shares]
    return [1 + (scale - 1) * share for share in shares]


def draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Sample a code from each row, (B,) int64, by inverting its cumulative distribution at a given uniform number.

    Args:
        logits_BV: (B, V).
        uniform_B: (B,) float64 in [0, 1).
        temperature: divides the logits; 0 takes the likeliest code (greedy), the first of several.
        top_k: keep the k likeliest codes; 0 for all, 1 as temperature 0.
        top_p: then keep the fewest likeliest codes whose total probability reaches this, in (0, 1].
    """
    if temperature == 0 or top_k == 1:
        return logits_BV.argmax(-1)
    # In float64, since rounding errors of a cumulative sum over thousands of codes would shift the draws.
    logits_BV = logits_BV.double()
    # The largest becomes 0, so that a temperature near 0 gives the argmax and not a quotient of infinities.
    probability_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_k and top_k < probability_BV.shape[-1]:
        # Not all that reach the k-th value: in 16 bits many logits are equal.
        kept_BK, code_BK = probability_BV.topk(top_k, sorted=False)
        probability_BV = torch.zeros_like(probability_BV).scatter(-1, code_BK, kept_BK)
        probability_BV = probability_BV / probability_BV.sum(-1, keepdim=True)
    if top_p < 1:
        ranked_BV, order_BV = probability_BV.sort(-1, descending=True)
        # Without the code itself, so that the one that crosses the threshold is kept.
        beyond_BV = ranked_BV.cumsum(-1) - ranked_BV >= top_p
        probability_BV = probability_BV.masked_fill(beyond_BV.gather(-1, order_BV.argsort(-1)), 0)
    cumulative_BV = probability_BV.cumsum(-1)
    # Scaled by the total, which is below 1 after top-p.
    target_B1 = uniform_B.to(cumulative_BV)[:, None] * cumulative_BV[:, -1:]
    # From the right, so that a number equal to a bound never picks a code of probability 0.
    code_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    return code_B1.squeeze(-1).clamp(max=logits_BV.shape[-1] - 1)
