"""Readings as they are taken, until they leave as rows of sums and numbers."""
