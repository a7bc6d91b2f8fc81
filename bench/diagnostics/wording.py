"""Words for the messages of checks."""

from collections.abc import Iterable


def some(names: Iterable[str], limit: int = 3) -> str:
    """List the first of several names, and the number of the others."""
    listed = list(names)
    more = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {more} more" if more > 0 else "")
