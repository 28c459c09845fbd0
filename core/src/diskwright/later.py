"""Modules that are loaded when something of them is used, not when something imports them."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """What an import finds until the module is needed; unlike what importlib has for this, also by ``import NAME``."""

    def __getattr__(self, name: str) -> Any:
        # The import system asks for these, of modules that nobody uses; for a package's path, to import a part of it.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(real(self.__name__, self), name)


def real(name: str, stand_in: ModuleType) -> ModuleType:
    """The module itself, from now on also for whoever imports it."""
    withdraw(name, stand_in)
    return import_module(name)


def withdraw(name: str, stand_in: ModuleType) -> None:
    """Whoever imports a module gets it itself from now on; nothing is done if that is so already."""
    if sys.modules.get(name) is stand_in:
        del sys.modules[name]


def load_later(*names: str) -> None:
    """Let modules wait that are not loaded yet. It holds for all of the process, so it is for programs to say."""
    for name in names:
        sys.modules.setdefault(name, _StandIn(name))
