"""Differential expression of an AnnData. Needs the extra: ``pip install "pyro-zilognormal[singlecell]"``."""

from pyro_zilognormal.models import Condition
from pyro_zilognormal.singlecell import plots as pl
from pyro_zilognormal.singlecell.api import HurdleDE
from pyro_zilognormal.singlecell.cube.cube import Cube
from pyro_zilognormal.singlecell.cube.reduce import extend_cube, reduce
from pyro_zilognormal.singlecell.design.design import Contrast
from pyro_zilognormal.singlecell.embed import Embedding, embed
from pyro_zilognormal.singlecell.errors import (
    ArgumentTypeError,
    DepthWarning,
    ScaleWarning,
    SingleCellError,
    UnknownNameError,
)
from pyro_zilognormal.singlecell.files.on_disk import open_cells
from pyro_zilognormal.singlecell.genes import Curve, GeneCondition, GeneFit, Sample
from pyro_zilognormal.singlecell.one_call import differential_expression, result_parameters
from pyro_zilognormal.singlecell.results import COLUMNS, to_scanpy, write_results

__all__ = [
    "COLUMNS",
    "ArgumentTypeError",
    "Condition",
    "Contrast",
    "Cube",
    "Curve",
    "DepthWarning",
    "Embedding",
    "GeneCondition",
    "GeneFit",
    "HurdleDE",
    "Sample",
    "ScaleWarning",
    "SingleCellError",
    "UnknownNameError",
    "differential_expression",
    "embed",
    "extend_cube",
    "open_cells",
    "pl",
    "reduce",
    "result_parameters",
    "to_scanpy",
    "write_results",
]
