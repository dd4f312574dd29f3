"""How good a clustering is, and what the features behind it are worth."""
