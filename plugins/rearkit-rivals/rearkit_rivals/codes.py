"""What the methods ask of a codebook: which codes are near, and clusters of equal size.

All of it is computed once, when a run begins, and depends on the codebook and a seed alone.

Shapes: V codes, Z their width, K neighbours, C clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

METRICS = ("euclidean", "cosine")
# Rows of the distance matrix at a time: 2**24 distances of a codebook of 16,384 codes are 64 MiB.
ROWS = 1024
# Most of what k-means gains, it gains in the first rounds; the last ones move single codes.
MOST_ROUNDS = 30


def comparable(codebook_VZ: Tensor, metric: str) -> Tensor:
    """Return a codebook (V, Z) float32 whose Euclidean distances are those of a metric, without gradient."""
    codebook_VZ = codebook_VZ.detach().float()
    return F.normalize(codebook_VZ, dim=-1) if metric == "cosine" else codebook_VZ


def nearest_codes(codebook_VZ: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the squared distances (V, K) of each code's ``count`` nearest other codes, and their ids (V, K)."""
    squares, ids = [], []
    for start in range(0, len(codebook_VZ), ROWS):
        rows_RZ = codebook_VZ[start : start + ROWS]
        distances_RV = torch.cdist(rows_RZ, codebook_VZ)
        # A code is not its own neighbour; its copies are.
        own_RV = torch.eye(len(rows_RZ), len(codebook_VZ), dtype=torch.bool, device=codebook_VZ.device).roll(start, 1)
        distances_RK, ids_RK = distances_RV.masked_fill(own_RV, torch.inf).topk(count, largest=False)
        squares.append(distances_RK.square())
        ids.append(ids_RK)
    return torch.cat(squares), torch.cat(ids)


def mean_nearest(squares_VK: Tensor) -> Tensor:
    """Return the mean squared distance of a code to the nearest other one: a scalar, the scale of a codebook.

    Codes that have a twin are left out; it is 1 if all have.
    """
    nearest_V = squares_VK[:, 0]
    mean = nearest_V.mean() * (len(nearest_V) / (nearest_V > 0).sum().clamp(min=1))
    return torch.where(mean > torch.finfo(torch.float32).tiny, mean, 1)


def balanced_clusters(codebook_VZ: Tensor, clusters: int, seed: int) -> Tensor:
    """Divide codes into clusters of equal size by k-means, and return the cluster of each, (V,) int64.

    Lloyd's two steps in turn, until nothing changes: each code to a near centroid, each centroid to the mean of its
    codes. The sizes differ by at most one, where V is no multiple of the number of clusters.

    Args:
        codebook_VZ: (V, Z).
        clusters: C, at most V.
        seed: which codes are the first centroids.
    """
    codes = len(codebook_VZ)
    if codebook_VZ.is_meta:
        # Memory is planned on tensors without content; any clusters of these sizes will do.
        return torch.arange(codes, device="meta") % clusters
    # In float64 on the CPU, so that the clusters do not depend on the device.
    points_VZ = codebook_VZ.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    centroids_CZ = points_VZ[torch.randperm(codes, generator=generator)[:clusters]]
    labels_V = torch.full((codes,), -1)
    for _ in range(MOST_ROUNDS):
        before_V, labels_V = labels_V, balanced_assignment(torch.cdist(points_VZ, centroids_CZ))
        if torch.equal(before_V, labels_V):
            break
        sums_CZ = torch.zeros_like(centroids_CZ).index_add_(0, labels_V, points_VZ)
        centroids_CZ = sums_CZ / labels_V.bincount(minlength=clusters)[:, None]
    return labels_V.to(codebook_VZ.device)


def balanced_assignment(distances_VC: Tensor) -> Tensor:
    """Assign codes to centroids that have room for equally many, and return the centroid of each, (V,) int64.

    In rounds: each code that has no place asks the nearest centroid with room left, which takes the nearest of those
    that ask. A centroid that is full stays so.
    """
    codes, clusters = distances_VC.shape
    room_C = codes // clusters + (torch.arange(clusters) < codes % clusters).long()
    labels_V = torch.full((codes,), -1)
    open_VC = distances_VC.clone()
    while len(free := (labels_V < 0).nonzero().flatten()):
        distance_F, wanted_F = open_VC[free].min(1)
        # Sorted by centroid, and by distance within each, so that a code's place in its queue is a difference.
        order = distance_F.argsort(stable=True)
        order = order[wanted_F[order].argsort(stable=True)]
        queues_C = wanted_F.bincount(minlength=clusters)
        starts_C = queues_C.cumsum(0) - queues_C
        wanted_F = wanted_F[order]
        taken_F = torch.arange(len(free)) - starts_C[wanted_F] < room_C[wanted_F]
        labels_V[free[order[taken_F]]] = wanted_F[taken_F]
        had_room_C = room_C > 0
        room_C -= wanted_F[taken_F].bincount(minlength=clusters)
        open_VC[:, had_room_C & (room_C == 0)] = torch.inf
    return labels_V
