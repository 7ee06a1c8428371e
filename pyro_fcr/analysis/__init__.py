"""Reading a fitted model."""
