"""Training on cases that are painted while the network trains, on a GPU."""
