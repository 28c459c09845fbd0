"""Values with named fields that take next to no time to declare.

A named tuple or a dataclass is compiled when it is declared, 0.2 ms each, and a command declares dozens of what it may
need: a tenth of the time of ``info``. Where they are made by the thousand, named tuples are better.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """Base of classes whose annotations are their fields, as with a frozen dataclass.

    Records are equal if they are of the same class and their fields are equal.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        declared = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 - as strings, and without inspect
        cls._fields += tuple(name for name in declared if name not in cls._fields)
        cls._names = frozenset(cls._fields)
        cls._defaults = {name: getattr(cls, name) for name in cls._fields if hasattr(cls, name)}

    def __init__(self, *values: Any, **named: Any) -> None:
        fields, own = self._fields, self.__dict__
        own.update(self._defaults)
        own.update(zip(fields, values, strict=False))
        own.update(named)
        placed = fields[: len(values)]
        if len(placed) < len(values) or not named.keys().isdisjoint(placed) or own.keys() != self._names:
            raise TypeError(f"{type(self).__name__} takes {', '.join(self._fields)}, not {values} and {named}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed, only replaced")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be removed")

    def replace(self, **changes: Any) -> Self:
        """The same with some fields changed."""
        return type(self)(**{**self.as_dict(), **changes})

    def as_dict(self) -> dict[str, Any]:
        """Fields with their values, in the order of their declaration."""
        own = self.__dict__
        return {field: own[field] for field in self._fields}

    def __eq__(self, other: object) -> bool:
        return self.as_dict() == other.as_dict() if isinstance(other, Record) and type(other) is type(self) else False

    def __hash__(self) -> int:
        return hash(tuple(self.as_dict().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"
