"""Model parts that any family shares: the LLM, projectors, freezing, checkpoints."""
