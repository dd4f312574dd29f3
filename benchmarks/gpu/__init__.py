"""The methods on one GPU, in stages of some minutes."""
