"""Networks that no library has; plans name them by their path."""
