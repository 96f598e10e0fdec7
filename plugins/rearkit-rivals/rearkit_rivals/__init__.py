"""A plugin for rearkit: training methods of the literature beside reAR, to compare it with."""

from __future__ import annotations

from rearkit import Component, hookimpl
from rearkit_rivals.cluster_cross_entropy import ClusterCrossEntropy, ClusterCrossEntropySettings
from rearkit_rivals.label_smoothing import LabelSmoothing, LabelSmoothingSettings
from rearkit_rivals.replacement_noise import MaskToken, MaskTokenSettings, NearestCode, NearestCodeSettings
from rearkit_rivals.scheduled_sampling import ScheduledSampling
from rearkit_rivals.self_guided import SelfGuided, SelfGuidedSettings


@hookimpl
def rearkit_components() -> list[Component]:
    """Return this package's components."""
    return [
        # The schedule needs neither sizes nor codebook, so it is its own settings, and there is nothing to build.
        Component("noise", "scheduled-sampling", ScheduledSampling, lambda schedule: schedule),
        Component("noise", "nearest-code", NearestCodeSettings, NearestCode),
        Component("noise", "mask-token", MaskTokenSettings, MaskToken),
        Component("regularizer", "cluster-cross-entropy", ClusterCrossEntropySettings, ClusterCrossEntropy),
        Component("regularizer", "label-smoothing", LabelSmoothingSettings, LabelSmoothing),
        Component("regularizer", "self-guided", SelfGuidedSettings, SelfGuided),
    ]
