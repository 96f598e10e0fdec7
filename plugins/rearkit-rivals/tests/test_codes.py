from __future__ import annotations

import itertools
import math

import pytest
import torch
from rearkit_rivals.cluster_cross_entropy import ClusterCrossEntropy, ClusterCrossEntropySettings
from rearkit_rivals.codes import ROWS, balanced_assignment, balanced_clusters, mean_nearest, nearest_codes
from rearkit_rivals.label_smoothing import LabelSmoothing, LabelSmoothingSettings
from torch import Tensor

from rearkit.contracts import RegularizerContext, TrainingStep

# Four pairs of codes: the nearest of each is its partner, at distance 1.
PAIRS_VZ = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9], [1, 0], [9, 1], [1, 9], [9, 8]])
PARTNERS = [4, 5, 6, 7, 0, 1, 2, 3]


def step(logits_BNV: Tensor, tokens_BN: Tensor) -> TrainingStep:
    return TrainingStep(
        tokens_BN=tokens_BN,
        replaced_BN=tokens_BN < 0,
        prefix_length=1,
        hidden={},
        logits_BNV=logits_BNV,
    )


def context(codebook_VZ: Tensor) -> RegularizerContext:
    return RegularizerContext(hidden_size=4, num_layers=2, codebook_VZ=codebook_VZ)


def test_nearest_codes_are_those_of_the_whole_matrix() -> None:
    assert nearest_codes(PAIRS_VZ, 1)[1].flatten().tolist() == PARTNERS
    codebook_VZ = torch.randn(2 * ROWS + 5, 3, generator=torch.Generator().manual_seed(0))
    distances_VV = torch.cdist(codebook_VZ, codebook_VZ).fill_diagonal_(torch.inf)
    squares_VK, ids_VK = nearest_codes(codebook_VZ, 3)
    assert torch.equal(ids_VK[:, 0], distances_VV.argmin(1))
    torch.testing.assert_close(squares_VK.sqrt(), distances_VV.sort().values[:, :3])


def test_copies_of_a_code_are_its_neighbours_and_give_no_scale_of_zero() -> None:
    squares_VK, ids_VK = nearest_codes(torch.ones(4, 2), 3)
    assert all(row not in others for row, others in enumerate(ids_VK.tolist()))
    assert mean_nearest(squares_VK) > 0
    # A twin is no measure of how far codes are apart.
    alone_VZ = torch.randn(7, 2)
    expected = mean_nearest(nearest_codes(alone_VZ, 1)[0][1:])
    squares_VK, _ = nearest_codes(torch.cat([alone_VZ[:1], alone_VZ]), 1)
    torch.testing.assert_close(mean_nearest(squares_VK), expected)


@pytest.mark.parametrize("distinct", [8, 1])
def test_smoothing_of_a_collapsed_codebook_is_finite(distinct: int) -> None:
    codebook_VZ = torch.randn(distinct, 4, generator=torch.Generator().manual_seed(0))
    made = LabelSmoothing(LabelSmoothingSettings(), context(codebook_VZ.repeat(16 // distinct, 1)))
    assert made(step(torch.randn(2, 4, 16), torch.randint(16, (2, 4))))["smoothing"].isfinite()


def test_clusters_of_pairs_are_the_pairs() -> None:
    # Whatever codes the centroids begin with.
    found = {tuple(balanced_clusters(PAIRS_VZ, 4, seed).tolist()) for seed in range(20)}
    right = [labels for labels in found if all(labels[v] == labels[PARTNERS[v]] for v in range(8))]
    assert right


@pytest.mark.parametrize(("codes", "clusters"), [(64, 8), (67, 8), (5, 5), (9, 1), (300, 17)])
def test_clusters_are_of_one_size_and_depend_on_the_seed_alone(codes: int, clusters: int) -> None:
    codebook_VZ = torch.randn(codes, 3, generator=torch.Generator().manual_seed(0))
    labels_V = balanced_clusters(codebook_VZ, clusters, seed=1)
    sizes_C = labels_V.bincount(minlength=clusters)
    assert sizes_C.max() - sizes_C.min() <= (codes % clusters > 0)
    torch.manual_seed(5)
    assert torch.equal(labels_V, balanced_clusters(codebook_VZ, clusters, seed=1))


def spread(codebook_VZ: Tensor, labels_V: Tensor) -> float:
    """The squared distances to the means of clusters, which k-means makes small."""
    means_CZ = torch.stack([codebook_VZ[labels_V == c].mean(0) for c in range(int(labels_V.max()) + 1)])
    return float((codebook_VZ - means_CZ[labels_V]).square().sum())


def test_clusters_are_tighter_than_the_first_assignment_and_than_chance() -> None:
    codebook_VZ = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    labels_V = balanced_clusters(codebook_VZ, 16, seed=0)
    first = torch.randperm(256, generator=torch.Generator().manual_seed(0))[:16]
    once_V = balanced_assignment(torch.cdist(codebook_VZ, codebook_VZ[first]))
    chance = spread(codebook_VZ, torch.arange(256) % 16)
    assert spread(codebook_VZ, labels_V) < 0.9 * spread(codebook_VZ, once_V) < 0.9 * chance


def test_a_full_centroid_turns_the_farther_codes_away() -> None:
    distances_VC = torch.tensor([[1.0, 8], [2, 9], [3, 7], [4, 6]])
    assert balanced_assignment(distances_VC).tolist() == [0, 0, 1, 1]


def test_the_cluster_loss_is_minus_the_log_of_the_clusters_probability() -> None:
    regularizer = ClusterCrossEntropy(ClusterCrossEntropySettings(clusters=3), context(torch.randn(8, 2)))
    labels = regularizer.labels_V.tolist()
    logits_BNV, tokens_BN = torch.randn(2, 5, 8), torch.randint(8, (2, 5))
    expected = []
    for b, n in itertools.product(range(2), range(5)):
        weights = [math.exp(z) for z in logits_BNV[b, n].tolist()]
        mine = labels[int(tokens_BN[b, n])]
        inside = sum(w for v, w in enumerate(weights) if labels[v] == mine)
        expected.append(-math.log(inside / sum(weights)))
    found = regularizer(step(logits_BNV, tokens_BN))["cluster"]
    assert found.item() == pytest.approx(sum(expected) / 10, rel=1e-5)


def test_the_cluster_loss_of_one_cluster_is_nothing_and_of_single_codes_the_cross_entropy() -> None:
    logits_BNV, tokens_BN = torch.randn(2, 5, 8), torch.randint(8, (2, 5))
    losses = {}
    for clusters in (1, 8):
        made = ClusterCrossEntropy(ClusterCrossEntropySettings(clusters=clusters), context(torch.randn(8, 2)))
        losses[clusters] = made(step(logits_BNV, tokens_BN))["cluster"].item()
    plain = torch.nn.functional.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN.flatten()).item()
    assert losses == {1: pytest.approx(0, abs=1e-6), 8: pytest.approx(plain, rel=1e-5)}


def test_more_clusters_than_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="clusters = 9: more than the 8 codes of the codebook"):
        ClusterCrossEntropy(ClusterCrossEntropySettings(clusters=9), context(PAIRS_VZ))


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_smoothing_makes_the_cross_entropy_that_with_smoothed_targets(weight: float) -> None:
    codebook_VZ = torch.randn(7, 3)
    made = LabelSmoothing(LabelSmoothingSettings(weight=weight, temperature=0.7), context(codebook_VZ))
    logits_BNV, tokens_BN = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    distances_VV = torch.cdist(codebook_VZ, codebook_VZ)
    nearest_V = distances_VV.clone().fill_diagonal_(torch.inf).min(1).values
    shares_VV = (-distances_VV.square() / (0.7 * nearest_V.square().mean())).softmax(-1)
    targets_VV = (1 - weight) * torch.eye(7) + weight * shares_VV
    logs_BNV = logits_BNV.log_softmax(-1)
    expected = -(targets_VV[tokens_BN] * logs_BNV).sum(-1).mean()
    plain = torch.nn.functional.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN.flatten())
    total = plain + made.weight * made(step(logits_BNV, tokens_BN))["smoothing"]
    torch.testing.assert_close(total, expected)


def test_smoothing_that_reaches_nowhere_is_none() -> None:
    made = LabelSmoothing(LabelSmoothingSettings(temperature=1e-3), context(PAIRS_VZ))
    assert made(step(torch.randn(2, 4, 8), torch.randint(8, (2, 4))))["smoothing"].item() == pytest.approx(0, abs=1e-5)
