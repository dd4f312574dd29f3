"""Times and memory of the hot paths, each against a floor measured in the same run: ``make speed``."""
