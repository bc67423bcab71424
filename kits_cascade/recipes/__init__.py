"""Whole jobs made of commands."""
