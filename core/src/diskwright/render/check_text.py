"""What ``check`` prints: a summary for people, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..facts import CheckResult


def check_object(filename: str, format: str, result: CheckResult) -> dict[str, Any]:
    """The result as QEMU's ``ImageCheck``, ready for the JSON writer: what is zero is left out."""
    counts = {
        "image-end-offset": result.image_end,
        "corruptions": result.corruptions,
        "leaks": result.leaks,
        "corruptions-fixed": result.corruptions_fixed,
        "leaks-fixed": result.leaks_fixed,
        "total-clusters": result.total_clusters,
        "allocated-clusters": result.allocated_clusters,
        "fragmented-clusters": result.fragmented_clusters,
        "compressed-clusters": result.compressed_clusters,
    }
    found = {name: count for name, count in counts.items() if count}
    return {"filename": filename, "format": format, "check-errors": result.check_errors, **found}


def repair_lines(result: CheckResult) -> Iterator[str]:
    """What was repaired, for people, a line each."""
    yield "The following inconsistencies were found and repaired:"
    yield ""
    yield f"    {result.leaks_fixed} leaked clusters"
    yield f"    {result.corruptions_fixed} corruptions"
    yield ""
    yield "Double checking the fixed image now..."


def check_lines(result: CheckResult) -> Iterator[str]:
    """The summary for people, a line each."""
    if not (result.corruptions or result.leaks or result.check_errors):
        yield "No errors were found on the image."
    if result.corruptions:
        yield ""
        yield f"{result.corruptions} errors were found on the image."
        yield "Data may be corrupted, or further writes to the image may corrupt it."
    if result.leaks:
        yield ""
        yield f"{result.leaks} leaked clusters were found on the image."
        yield "This means waste of disk space, but no harm to data."
    if result.check_errors:
        yield ""
        yield f"{result.check_errors} internal errors have occurred during the check."
    if result.total_clusters and result.allocated_clusters:
        allocated = result.allocated_clusters
        yield (
            f"{allocated}/{result.total_clusters} = {allocated * 100 / result.total_clusters:.2f}% allocated, "
            f"{result.fragmented_clusters * 100 / allocated:.2f}% fragmented, "
            f"{result.compressed_clusters * 100 / allocated:.2f}% compressed clusters"
        )
    if result.image_end:
        yield f"Image end offset: {result.image_end}"
