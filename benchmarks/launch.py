"""Starts programs and measures them, in a process of its own that stays small.

Linux counts the memory of the process that called exec towards the peak of the program that is executed. So the peak of
what is measured can never be seen to be lower than that of its parent, and the parent must be as small as can be: this
file is run by ``python -I -S`` and imports little but what the interpreter is made of. :mod:`benchmarks.process` talks
to it, in marshalled values over a pipe: a request ``(arguments, stdout, stderr, seconds)``, an answer ``(wall, user,
system, peak, status)`` in seconds, seconds, seconds, KiB and as from ``waitpid``, or the text of an error.
"""

import marshal
import os
import signal
import sys
import time

child = 0


def stop(number: int, _frame: object) -> None:
    """End the program that runs: it has taken too long, or the whole benchmark is to end."""
    if child:
        os.killpg(child, signal.SIGKILL)
    if number != signal.SIGALRM:
        os._exit(1)


def limit_address_space(size: int) -> None:
    """Let this process, and so all that it starts, have no more than so many bytes of addresses."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def measure(arguments: list[str], stdout: str, stderr: str, seconds: int) -> tuple[float, float, float, int, int]:
    """Run a program to its end."""
    global child  # noqa: PLW0603  the signal handler has no other way to know
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, stdout, flags, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, stderr, flags, 0o644),
    ]
    signal.alarm(seconds)
    start = time.monotonic()
    child = os.posix_spawnp(
        arguments[0], arguments, os.environ, file_actions=actions, setpgroup=0, setsigdef=[signal.SIGINT]
    )
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - start
    child = 0
    signal.alarm(0)
    return wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss, status


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark gets it too, and then ends this process
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, stop)
    if len(sys.argv) > 1:
        limit_address_space(int(sys.argv[1]))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request = marshal.load(requests)  # noqa: S302  from our own parent
        except EOFError:
            return
        try:
            answer: tuple[float, float, float, int, int] | str = measure(*request)
        except OSError as error:
            answer = str(error)
        answers.write(marshal.dumps(answer))
        answers.flush()


if __name__ == "__main__":
    main()
