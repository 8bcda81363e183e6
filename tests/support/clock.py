"""A clock that stands still until a test moves it."""


class Clock:
    """Returns `now`, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
