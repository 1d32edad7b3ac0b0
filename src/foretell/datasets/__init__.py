"""Data sets: rows that others measured (the catalogue), and those that foretell labels itself."""
