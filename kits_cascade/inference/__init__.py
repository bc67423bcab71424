"""The cascade over one or many cases."""
