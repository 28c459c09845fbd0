"""What authors of drivers test with: the conformance kit, nodes in memory, and the real qemu-img where it is installed.

Needs the extra ``diskwright-core[testing]``.
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{part}" for part in ("changing", "contract", "reading", "robustness", "writing"))
)

from .base import open_node
from .conformance import DriverConformance
from .nodes import MemoryNode, RecordingNode
from .oracle import find_qemu_img, qemu_img

__all__ = ["DriverConformance", "MemoryNode", "RecordingNode", "find_qemu_img", "open_node", "qemu_img"]
