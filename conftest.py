"""What the tests of all packages need of the process they run in."""

import signal

# Where a program is started in the background, it and all that it starts ignore SIGINT; tests send that signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
