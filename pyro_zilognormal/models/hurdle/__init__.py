"""Bayesian hurdle regression of all genes: model, guide, fit, and fold changes from its posterior draws."""
