"""Parts of the models: config in, arrays in, arrays out. They do not sample, tokenise or wait for the host."""
