"""Running benchmarks: questions to the model, predictions to disk, predictions to scores."""
