"""MG-LLaVA (arXiv 2406.17770): a vision-language model that looks at a picture in low and high resolution and by objects."""
