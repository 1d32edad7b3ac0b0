"""Importers of public measurements, one module a source."""
