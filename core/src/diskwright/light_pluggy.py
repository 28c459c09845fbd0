"""pluggy, without what the module ``inspect`` takes to load: ast, dis and tokenize, a fifth of the time of ``info``.

Of a driver's hooks pluggy asks ``inspect`` questions that for plain functions and classes are answered in a line. This
module stands for ``inspect`` while pluggy is imported, and passes on all else. It gains nothing with pluggy up to 1.6,
which also asks for signatures, nor where ``inspect`` has been loaded already.
"""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from .later import real, withdraw

__all__ = ["pluggy"]

_THIS = sys.modules[__name__]


def isclass(value: object) -> bool:
    """As in ``inspect``, like all that follow."""
    return isinstance(value, type)


def ismodule(value: object) -> bool:
    return isinstance(value, ModuleType)


def isfunction(value: object) -> bool:
    return isinstance(value, FunctionType)


def ismethod(value: object) -> bool:
    return isinstance(value, MethodType)


def isroutine(value: object) -> bool:
    return isinstance(value, FunctionType | MethodType | BuiltinFunctionType) or bool(_real().isroutine(value))


def unwrap(function: Any, **how: Any) -> Any:
    return _real().unwrap(function, **how) if hasattr(function, "__wrapped__") else function


def getattr_static(value: object, name: str, *default: Any) -> Any:
    owner = value if isinstance(value, type) else type(value)
    if owner is value or name not in getattr(value, "__dict__", ()):
        for base in owner.__mro__:
            if name in base.__dict__:
                return base.__dict__[name]
    return _real().getattr_static(value, name, *default)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # the import system asks whether this is a package
        raise AttributeError(name)
    return getattr(_real(), name)


def _real() -> ModuleType:
    return real("inspect", _THIS)


sys.modules.setdefault("inspect", _THIS)
try:
    import pluggy
finally:
    withdraw("inspect", _THIS)
