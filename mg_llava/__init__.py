"""MG-LLaVA (arXiv 2406.17770): a vision-language model with low resolution, high resolution and object tokens."""
