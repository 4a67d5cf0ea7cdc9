"""Benchmarks of videos: free answers that a judge marks, and multiple choice."""
