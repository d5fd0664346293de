"""What a talker reads: the prompt of each family."""
