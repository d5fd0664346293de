"""The parts that are Qwen2.5-Omni's own."""
