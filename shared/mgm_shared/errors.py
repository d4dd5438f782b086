"""The one error that is the user's to mend: the programs print it as one line and leave with exit code 2."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what to do."""
