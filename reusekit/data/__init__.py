"""Data in: examples with their task, split, selected, treated, and named by their content."""

from reusekit.data.arrays import from_arrays, from_dataset
from reusekit.data.catalogue import load
from reusekit.data.folders import from_folder
from reusekit.data.shares import Shares
from reusekit.data.split import DataSplit
from reusekit.data.table import from_table
from reusekit.data.task import Task
from reusekit.data.treatment import Treatment

__all__ = [
    "DataSplit",
    "Shares",
    "Task",
    "Treatment",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_table",
    "load",
]
