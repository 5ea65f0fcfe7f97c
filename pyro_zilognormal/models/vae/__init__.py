"""A variational autoencoder of cells on the zero-inflated log-normal: model, guide, fit, and what it says of cells."""
