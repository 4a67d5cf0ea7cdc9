"""Training: runner, loop, optimizer, schedule, hooks and the DeepSpeed strategy."""
