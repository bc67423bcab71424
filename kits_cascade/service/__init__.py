"""Work that comes in by itself: from a watched folder, an archive, a challenge platform, or clients."""
