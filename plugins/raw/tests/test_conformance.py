"""The raw driver against the conformance kit."""

from diskwright.testing import DriverConformance


class TestRaw(DriverConformance):
    name, entry_module = "raw", "diskwright_raw.plugin"
