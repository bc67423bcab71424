"""Masks to numbers, tables, pages and submissions."""
