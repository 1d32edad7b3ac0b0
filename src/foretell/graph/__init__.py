"""The graph: an immutable network, its op types, cost and memory. Knows no file format."""
