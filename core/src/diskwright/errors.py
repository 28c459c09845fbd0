"""Every failure a caller may expect, as one family of exceptions.

``str(error)`` is the line a user sees (without the program's name); ``hint`` holds further lines that follow it without
a prefix. Anything that is not an :class:`ImageError` is a defect in diskwright or a plugin and keeps its traceback.
"""

from __future__ import annotations

import os


class ImageError(Exception):
    """Base of all expected failures.

    :param message: one line for the user.
    :param hint: further lines (advice), printed after the message.
    :param before: a message of its own that comes before this one.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", before: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.before = before

    def in_context(self, prefix: str) -> ImageError:
        """A copy of this error, of the same class, whose message starts with ``prefix: ``."""
        copy = self.__class__.__new__(self.__class__)
        copy.__dict__.update(self.__dict__)
        copy.args = (f"{prefix}: {self}",)
        return copy


class InvalidImage(ImageError, ValueError):
    """The bytes of an image break its format.

    :param filename: the file with the offending bytes, if known.
    :param offset: where in that file, in bytes, if known.
    """

    def __init__(self, message: str, *, filename: str = "", offset: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.filename = filename
        self.offset = offset


class UnsupportedFeature(ImageError):
    """The image is valid but needs a feature that the driver lacks; the message names it."""


class UnsupportedOperation(ImageError, NotImplementedError):
    """The driver does not implement the hook that the operation needs."""


class UnknownFormat(ImageError, LookupError):
    """No installed driver has that name; the hint says which package to install, where that is known."""


class InvalidOption(ImageError, ValueError):
    """An option does not exist, is malformed or out of range."""


class RefusedByPolicy(ImageError, PermissionError):
    """The caller's policy forbids to open this."""


class LockConflict(ImageError):
    """Another process uses the image in a way that conflicts."""


class NodeIOError(ImageError, OSError):
    """The system failed to read, write or flush; carries ``errno``.

    :param action: what was being done, e.g. ``Could not open 'x'``.
    """

    def __init__(self, action: str, cause: OSError) -> None:
        reason = reason_of(cause)
        super().__init__(f"{action}: {reason}" if action else reason)
        self.errno = cause.errno
        self.reason = reason

    def __str__(self) -> str:
        # OSError formats (errno, text) pairs by itself; the user's line is the first argument only.
        return str(self.args[0])


def reason_of(error: Exception) -> str:
    """What went wrong, in the system's own words if it said so, e.g. ``No space left on device``."""
    if isinstance(error, NodeIOError):
        return error.reason
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def io_error(action: str, number: int) -> NodeIOError:
    """The failure of an operation with one of the system's error numbers, as if the system had reported it."""
    return NodeIOError(action, OSError(number, os.strerror(number)))
