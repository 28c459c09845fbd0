"""What the tests of all packages need of the process they run in."""

import resource
import signal
from collections.abc import Iterator

import pytest

# Where a program is started in the background, it and all that it starts ignore SIGINT; tests send that signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _limits_end_with_the_test() -> Iterator[None]:
    """A policy on memory or time that a command was given limits the process that it runs in."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    signal.setitimer(signal.ITIMER_REAL, 0)
