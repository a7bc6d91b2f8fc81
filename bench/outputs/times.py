"""Durations in words."""


def duration(seconds: float) -> str:
    """Format a duration: "45 s", "12 min", "3.4 h", "2.1 d"."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"
