"""AnnData in, minibatches out: schema, design, encoded cells, sources, splits."""

from pyro_fcr.data import splits
from pyro_fcr.data.batch import Batch
from pyro_fcr.data.cells import Cells
from pyro_fcr.data.design import Design
from pyro_fcr.data.genes import top_genes
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.sources import BatchSource, MemorySource
from pyro_fcr.data.splits import Split

__all__ = [
    "Batch",
    "BatchSource",
    "Cells",
    "Design",
    "MemorySource",
    "Schema",
    "Split",
    "splits",
    "top_genes",
]
