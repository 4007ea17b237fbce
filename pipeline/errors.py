"""The one exception for what a person can mend."""


class InputError(ValueError):
    """Bad input: the message is one line that says what was got, what was expected and what to do. Jobs exit
    with code 2."""
