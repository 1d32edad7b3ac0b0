"""Labelled data sets: the one that foretell builds, and public ones that it reads."""
