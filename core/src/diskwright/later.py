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
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def load_later(*names: str) -> None:
    """Let modules wait that are not loaded yet. It holds for all of the process, so it is for programs to say."""
    for name in names:
        sys.modules.setdefault(name, _StandIn(name))
