"""Failures of contract tests, with a reason."""


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError, whatever Python's options are.

    Raises:
        AssertionError: with the message, if the condition does not hold.
    """
    if not condition:
        raise AssertionError(message)
