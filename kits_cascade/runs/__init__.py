"""A folder of CTs to a folder of results."""
