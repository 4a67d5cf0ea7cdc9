"""Parquet and Arrow files, read without their pictures; a picture's bytes stay where they lie until they are wanted."""
