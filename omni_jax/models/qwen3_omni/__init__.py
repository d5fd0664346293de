"""The parts that are Qwen3-Omni's own."""
