"""Values with named fields."""

from __future__ import annotations

import pytest

from diskwright.record import Record


class Point(Record):
    x: int
    y: int = 2

    @property
    def sum(self) -> int:
        return self.x + self.y


class Named(Point):
    name: str = "a"
    y: int = 3


def test_fields_come_in_order_or_by_name_and_have_defaults() -> None:
    assert Point(1).as_dict() == {"x": 1, "y": 2}
    assert Point(1, 5) == Point(y=5, x=1)
    assert Point(1).sum == 3
    assert Named(1, 2, "b").as_dict() == {"x": 1, "y": 2, "name": "b"}
    assert Named(1).y == 3
    assert repr(Point(1)) == "Point(x=1, y=2)"


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_other_fields_are_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"^Point "):
        Point(*values, **named)


def test_equal_if_class_and_fields_are() -> None:
    assert Point(1) != Named(1, 2)
    assert Point(1) != (1, 2)
    assert Point(1) != Point(2)
    assert len({Point(1), Point(1, 2), Point(2)}) == 2


def test_fields_are_not_to_be_changed() -> None:
    point = Point(1)
    for change in (lambda: setattr(point, "x", 2), lambda: setattr(point, "z", 2), lambda: delattr(point, "x")):
        with pytest.raises(AttributeError, match=r"^Point\.[xz] cannot be "):
            change()
    assert point == Point(1)


def test_replacing_makes_another_one() -> None:
    first = Point(1)
    assert first.replace(y=7) == Point(1, 7)
    assert first == Point(1)
    with pytest.raises(TypeError):
        first.replace(z=1)
