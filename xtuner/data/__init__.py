"""Text data: templates, conversations, tokenising, samplers, collating, preparing."""
