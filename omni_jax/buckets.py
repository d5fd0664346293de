"""The sizes that lengths are padded to, so that programs stay few."""


def bucket(size: int, least: int = 16) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most half is padding, and the shapes that compile stay few."""
    while least < size:
        if least % 3 and least * 3 // 2 >= size:
            return least * 3 // 2
        least *= 2
    return least
