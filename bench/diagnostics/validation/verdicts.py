"""Exceptions that checks raise."""


class Violation(Exception):  # noqa: N818  (the result of a check, not an error of the program)
    """The method breaks the contract; the message tells its author how."""


class NotApplicable(Exception):  # noqa: N818
    """A check does not apply to this method; the message gives the reason."""


class EndlessError(Exception):
    """A search took many times longer than the method's plain one."""
