"""Formulas of plain tensors."""
