"""What follows from predictions: explanations, placements, sweeps."""
