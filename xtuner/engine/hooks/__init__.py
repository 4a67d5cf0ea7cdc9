"""What happens around steps: logging, saving, stopping, validating, profiling."""
