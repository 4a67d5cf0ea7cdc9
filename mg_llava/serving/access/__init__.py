"""What stands before every route: who may ask, how much comes in, and an answer for what nobody foresaw."""
