"""Data sets: rows that others measured (catalogue), and those that foretell labels itself."""
