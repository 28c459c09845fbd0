"""The conformance kit: one class with all tests that any format driver has to pass.

A package tests its driver with a few lines::

    class TestVdi(DriverConformance):
        name, entry_module = "vdi", "diskwright_vdi.plugin"
"""

from __future__ import annotations

from .changing import ChangingTests
from .contract import ContractTests
from .reading import ReadingTests
from .robustness import RobustnessTests
from .writing import WritingTests


class DriverConformance(ContractTests, ReadingTests, RobustnessTests, WritingTests, ChangingTests):
    """Subclass it, with ``Test`` in front of the name, and set ``name`` and ``entry_module``.

    Tests of hooks that the driver does not implement, and of the real qemu-img where that is missing, are skipped with
    the reason. For what else can be set see :class:`~diskwright.testing.base.DriverTests`.
    """
