"""The processes of a run: how they find each other, and work that they share."""
