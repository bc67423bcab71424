"""``python -m kits_cascade``: the command line."""

from kits_cascade.cli.app import main

main()
