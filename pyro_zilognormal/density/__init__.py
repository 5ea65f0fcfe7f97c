"""The log density."""
