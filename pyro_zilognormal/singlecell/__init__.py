"""Differential expression of an AnnData. Needs the extra: ``pip install "pyro-zilognormal[singlecell]"``."""

from pyro_zilognormal.singlecell.api import differential_expression, result_parameters
from pyro_zilognormal.singlecell.contrasts import CellCondition, Contrast
from pyro_zilognormal.singlecell.de import HurdleDE
from pyro_zilognormal.singlecell.errors import ScaleWarning, SingleCellError, UnknownNameError
from pyro_zilognormal.singlecell.file import CellFile, open_cells
from pyro_zilognormal.singlecell.table import COLUMNS
from pyro_zilognormal.singlecell.writing import to_scanpy, write_results

__all__ = [
    "COLUMNS",
    "CellCondition",
    "CellFile",
    "Contrast",
    "HurdleDE",
    "ScaleWarning",
    "SingleCellError",
    "UnknownNameError",
    "differential_expression",
    "open_cells",
    "result_parameters",
    "to_scanpy",
    "write_results",
]
