"""The table of each family: one readable row a parameter."""
