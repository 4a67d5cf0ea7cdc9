"""``xtuner serve``: a web page and an OpenAI-compatible endpoint on one model."""
