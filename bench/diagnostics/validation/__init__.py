"""Validation: checks whether a method keeps the contract of `bench.method`, as `bench validate` runs them.

A check is a function of a `MethodUnderTest`. It returns its observation in words, or raises `Violation` or
`NotApplicable`; any other exception comes from the method and counts as a violation. `suite` lists the checks and
turns their outcomes into `CheckResult`s. No check knows a method by name.
"""
