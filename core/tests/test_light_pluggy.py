import functools
import inspect
import subprocess
import sys
from typing import Protocol

import pytest

from diskwright import light_pluggy

QUESTIONS = ("isclass", "ismodule", "isfunction", "ismethod", "isroutine")


class Meta(type):
    of_meta = 1


class Base:
    inherited = 1

    def method(self) -> None:
        pass


class Driver(Base, metaclass=Meta):
    __slots__ = ("slot",)

    @staticmethod
    def static() -> None:
        pass

    @classmethod
    def of_class(cls) -> None:
        pass

    @property
    def computed(self) -> int:
        raise AssertionError("nobody may run this")


class Specs(Protocol):
    def hook(self) -> None: ...


@functools.wraps(Base.method)
def wrapping() -> None:
    pass


def instance() -> Base:
    made = Base()
    made.inherited = 2
    return made


VALUES = {
    "class": Driver,
    "protocol": Specs,
    "instance": Driver(),
    "instance with own": instance(),
    "function": wrapping,
    "bound": Base().method,
    "built-in": len,
    "method of a built-in type": "".join,
    "slot wrapper": object.__init__,
    "descriptor": Driver.__dict__["computed"],
    "lambda": lambda: None,
    "partial": functools.partial(len),
    "module": sys,
    "number": 3,
}
NAMES = ("method", "inherited", "static", "of_class", "computed", "hook", "of_meta", "slot", "__doc__", "__dict__", "x")


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_it_answers_as_inspect_does(value: object) -> None:
    for question in QUESTIONS:
        assert getattr(light_pluggy, question)(value) == getattr(inspect, question)(value), question
    for name in NAMES:
        found = inspect.getattr_static(value, name, None)
        assert light_pluggy.getattr_static(value, name, None) is found or name == "__dict__", name


def test_wrapped_functions_are_unwrapped_and_what_is_missing_is_an_error() -> None:
    assert light_pluggy.unwrap(wrapping) is inspect.unwrap(wrapping) is Base.method
    assert light_pluggy.unwrap(Base.method) is Base.method
    with pytest.raises(AttributeError):
        light_pluggy.getattr_static(Driver(), "x")


def test_all_else_comes_from_inspect_itself() -> None:
    assert light_pluggy.signature is inspect.signature
    assert light_pluggy.Parameter is inspect.Parameter


AFTERWARDS = """
import sys
sys.modules.pop("inspect", None)  # whatever starts with this interpreter may need it
from diskwright.hookspecs import hookimpl
assert "inspect" not in sys.modules
import pluggy
manager = pluggy.PluginManager("diskwright")

class Driver:
    @hookimpl
    def probe(self, head, filename):
        return head + filename

manager.register(Driver())
assert manager.hook.probe(head=1, filename=2) == [3]
import inspect
assert inspect.__file__.endswith("inspect.py"), inspect
assert list(inspect.signature(Driver.probe).parameters) == ["self", "head", "filename"]
"""

BEFORE = """
import inspect
real = inspect
from diskwright.hookspecs import hookimpl
import sys
assert sys.modules["inspect"] is real
import pluggy._manager
assert pluggy._manager.inspect is real
"""


@pytest.mark.parametrize("program", [AFTERWARDS, BEFORE], ids=["loaded later", "loaded before"])
def test_others_get_inspect_itself(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)
