"""What users give (``records``), made into tokens (``text``), kept on disk (``store``); pictures and batches."""
