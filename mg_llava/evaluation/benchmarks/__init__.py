"""What a benchmark is (``base``), what the kinds share, and in ``kinds`` one module per kind."""
