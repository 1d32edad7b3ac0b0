"""foretell: latency, energy and memory of a neural network on a device, before it runs there."""
