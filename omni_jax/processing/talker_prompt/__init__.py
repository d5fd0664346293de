"""The talker's prompt in each family."""
