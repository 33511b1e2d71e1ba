"""Models from models: split, extract, edit, clone, flatten, verify, on one rebuild engine."""

from reusekit.surgery.certificate import Certificate
from reusekit.surgery.clone import clone, flatten
from reusekit.surgery.edit import Edited, edit, insert, remove, replace
from reusekit.surgery.edits import Insert, Remove, Replace
from reusekit.surgery.expand import expand
from reusekit.surgery.extract import extract
from reusekit.surgery.prepend import prepend
from reusekit.surgery.segment import segment
from reusekit.surgery.split import Split, split

__all__ = [
    "Certificate",
    "Edited",
    "Insert",
    "Remove",
    "Replace",
    "Split",
    "clone",
    "edit",
    "expand",
    "extract",
    "flatten",
    "insert",
    "prepend",
    "remove",
    "replace",
    "segment",
    "split",
]
