from __future__ import annotations

import pytest
from rearkit_rivals import rearkit_components
from rearkit_rivals.self_guided import SelfGuidedSettings

from rearkit import Component
from rearkit.testing import check_component


@pytest.mark.parametrize("component", rearkit_components(), ids=lambda component: component.name)
def test_each_component_keeps_its_contract(component: Component) -> None:
    small = {"self-guided": SelfGuidedSettings(projection_dim=8)}
    check_component(component, small.get(component.name))
