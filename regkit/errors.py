"""The one error that a user can cause and mend."""


class InputError(ValueError):
    """Wrong input. The message says who, what was given, what is allowed and what to do."""

    def line(self) -> str:
        """Return what a program prints of it: one line."""
        return f"regkit: {' '.join(str(self).split())}"
