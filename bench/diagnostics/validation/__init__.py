"""The conformance suite of `bench validate`: whether a method keeps the contract of `bench.method`.

Checks are small functions of a `MethodUnderTest`. They return what they found in words, or raise `Violation` or
`NotApplicable`; any other exception is the method's, and a violation too. The suite knows no method by name.
"""
