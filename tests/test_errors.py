from __future__ import annotations

import pickle

import pytest

from rearkit import errors
from rearkit.errors import MOST_PROBLEMS, RearkitError, RecipeError

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RearkitError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_pass_from_process_to_process_as_they_are(kind: type[RearkitError]) -> None:
    lines = ["a.toml: [train] steps: x", *(f"problem {index}" for index in range(MOST_PROBLEMS))]
    error = kind(lines) if issubclass(kind, RecipeError) else kind("\n".join(lines))
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is kind
    assert str(sent) == str(error) and sent.exit_code == error.exit_code and vars(sent) == vars(error)
