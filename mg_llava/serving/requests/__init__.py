"""From the bytes of a request to a prompt and its sampling, within a budget."""
