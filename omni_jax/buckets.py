"""The sizes that lengths are padded to, so that few programs are compiled."""

# Chunk slots of a call, each a compiled program of the audio encoder. A chunk is 1 s of sound in Qwen3-Omni and 2 s in
# Qwen2.5-Omni. From ten chunks to the largest size, each size is at most 30 % more than the shortest clip that needs
# it. The largest is seven attention windows of Qwen3-Omni and bounds the memory of a call.
CHUNK_SLOTS = (1, 2, 4, 8, 12, 15, 19, 24, 30, 38, 47, 56)


def bucket(size: int, least: int = 16) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most half is padding, and few shapes are compiled."""
    while least < size:
        if least % 3 and least * 3 // 2 >= size:
            return least * 3 // 2
        least *= 2
    return least


# New tokens that a new cache has room for.
INITIAL_NEW_SLOTS = 512


def first_slots(padded: int, length: int, most: int) -> int:
    """Cache slots for a padded prompt of ``length`` tokens and up to ``most`` new ones, at first INITIAL_NEW_SLOTS."""
    return max(padded, bucket(length + min(most, INITIAL_NEW_SLOTS)))


def more_slots(slots: int, length: int, most: int) -> int:
    """Cache slots after a full cache has grown: twice as many, but no more than prompt and new tokens can fill."""
    return min(2 * slots, bucket(length + most))


# Most patches of frames that share a call of the vision encoder; a larger frame gets a call of its own.
CALL_PATCHES = 4096


def patch_slots(size: int) -> int:
    """The next of 256, 320, 384, 448, 512, 640, ...: at most a quarter is padding; 17 sizes up to CALL_PATCHES."""
    step = 64
    while 8 * step < size:
        step *= 2
    return max(4 * step, -(-size // step) * step)
