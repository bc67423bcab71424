"""Losses, networks, augmentation and trainers."""
