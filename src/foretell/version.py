"""The version of foretell; pyproject.toml has the same."""

VERSION = "0.1.0"
