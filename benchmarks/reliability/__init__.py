"""Proof that the framework survives what happens to it: ``make reliability``."""
