"""Questions that take many predictions: where to cut a network, and which of many networks to take."""
