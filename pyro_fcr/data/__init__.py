"""AnnData in, minibatches out: schema, design, encoded cells, sources, splits."""

from pyro_fcr.data import splits
from pyro_fcr.data.batch import Batch, label_batch
from pyro_fcr.data.cells import Cells
from pyro_fcr.data.design import Design
from pyro_fcr.data.genes import top_genes
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.sources import (
    BatchSource,
    MemorySource,
    ResidentSource,
    StreamSource,
    open_source,
)
from pyro_fcr.data.splits import Split
from pyro_fcr.data.stored import Stored, StoredCounts, keep_inside, open_data

__all__ = [
    "Batch",
    "BatchSource",
    "Cells",
    "Design",
    "MemorySource",
    "ResidentSource",
    "Schema",
    "Split",
    "Stored",
    "StoredCounts",
    "StreamSource",
    "keep_inside",
    "label_batch",
    "open_data",
    "open_source",
    "splits",
    "top_genes",
]
