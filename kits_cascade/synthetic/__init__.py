"""CT without patients."""
