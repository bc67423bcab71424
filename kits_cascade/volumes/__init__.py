"""A CT or a label map, in memory and in files."""
