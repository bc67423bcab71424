"""Work that comes in by itself: a watched folder."""
