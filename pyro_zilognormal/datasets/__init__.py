"""A small real data set that travels with the package, and a simulator with known parameters."""

from pyro_zilognormal.datasets.pbmc68k import PBMC68k, pbmc68k_reduced
from pyro_zilognormal.datasets.simulate import SimulatedZILN, simulate_ziln

__all__ = ["PBMC68k", "SimulatedZILN", "pbmc68k_reduced", "simulate_ziln"]
