"""The weight table of each family: a row for each parameter."""
