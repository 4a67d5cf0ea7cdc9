"""What several commands need: their common arguments, model families, trained models, advice when memory ends."""
