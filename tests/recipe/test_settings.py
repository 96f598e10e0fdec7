from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit.recipe.settings import setting, settings


@settings
class Example:
    """An example."""

    ratio: float = setting("a ratio", default=0.5, ge=0, lt=1)
    size: int | None = setting("a size", default=None, gt=2, le=9)
    many: tuple[int, ...] = setting("many", default=(1,), ge=1, min_len=1)
    word: str = setting("a word", default="a", choices=("a", "b"), cosmetic=True)
    free: str = setting("no bounds", default="")


def fits(**values: object) -> bool:
    try:
        Example(**values)
    except ValueError:
        return False
    return True


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_bounds_hold_exactly_and_nan_never_passes(value: float) -> None:
    assert fits(ratio=value) == (0 <= value < 1)


@given(st.none() | st.integers(-5, 15))
def test_bounds_do_not_apply_to_no_value(value: int | None) -> None:
    assert fits(size=value) == (value is None or 2 < value <= 9)


@given(st.lists(st.integers(-2, 3)).map(tuple))
def test_bounds_apply_to_each_item_of_a_list_and_length_to_the_list(value: tuple[int, ...]) -> None:
    assert fits(many=value) == (len(value) >= 1 and all(item >= 1 for item in value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": -0.1}, "expected ≥ 0, got -0.1"),
        ({"ratio": 1.0}, "expected < 1, got 1.0"),
        ({"size": 2}, "expected > 2, got 2"),
        ({"size": 10}, "expected ≤ 9, got 10"),
        ({"many": ()}, "expected at least 1 value"),
        ({"word": "c"}, "expected one of 'a', 'b', got 'c'"),
    ],
)
def test_a_message_has_the_bound_and_the_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Example(**values)


def test_further_validators_apply_too() -> None:
    def even(instance: object, attribute: object, value: int) -> None:
        if value % 2:
            raise ValueError("odd")

    @settings
    class Even:
        """Even."""

        number: int = setting("a number", default=0, ge=0, validator=even)

    Even(number=2)
    for wrong in (1, -2):
        with pytest.raises(ValueError, match=r"odd|expected ≥ 0"):
            Even(number=wrong)


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Example().ratio = 0.1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Example(0.1)  # type: ignore[misc]
    assert not hasattr(Example(), "__dict__")


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match="immutable"):
        setting("a list", default=[])


def test_every_setting_of_rearkit_has_a_sentence() -> None:
    from rearkit.recipe import tables as recipe
    from rearkit.registry import plugins

    tables = [value for value in vars(recipe).values() if isinstance(value, type) and attrs.has(value)]
    tables = [table for table in tables if not issubclass(table, recipe.ComponentTable)]
    components = [c.settings for c in plugins.registry().all() if c.provider.startswith("rearkit ")]
    assert len(tables) > 5
    for cls in [*tables, *components]:
        assert cls.__doc__
        for field in attrs.fields(cls):
            assert field.metadata.get("doc"), f"{cls.__name__}.{field.name}"


def test_what_a_setting_says_is_kept_for_those_who_print_it() -> None:
    fields = attrs.fields_dict(Example)
    assert fields["ratio"].metadata["doc"] == "a ratio"
    assert fields["word"].metadata["cosmetic"]
    assert not fields["ratio"].metadata["cosmetic"]
    limits = {name: field.metadata["limits"] for name, field in fields.items()}
    assert limits == {
        "ratio": ("≥ 0", "< 1"),
        "size": ("> 2", "≤ 9"),
        "many": ("≥ 1", "length ≥ 1"),
        "word": ('one of "a", "b"',),
        "free": (),
    }
