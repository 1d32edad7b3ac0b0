"""Task search spaces: networks as small devices run them, each a small spec from which it is rebuilt bit for bit."""
