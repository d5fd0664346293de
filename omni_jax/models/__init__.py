"""Parts of the models: config in, arrays in, arrays out. Nothing here samples, tokenises or waits for the host."""
