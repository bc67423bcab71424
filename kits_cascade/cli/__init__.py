"""The command line: thin functions over the rooms below."""
