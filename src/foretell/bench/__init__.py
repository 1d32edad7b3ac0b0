"""Measuring: the protocol of one measurement, and campaigns of many."""
