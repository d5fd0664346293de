"""What is a mistake of whoever asked, which another try would only say again, and what another try may mend."""

MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class UnreachedError(OSError, ValueError):
    """A file, a store or a hub that does not do now what it is asked for, and may later."""


def is_mistake(error: BaseException) -> bool:
    """Whether it is one of whoever asked; any other error may be gone the next time."""
    return isinstance(error, MISTAKES) and not isinstance(error, UnreachedError)
