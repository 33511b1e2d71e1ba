"""Models from models: split, extract, edit, clone, flatten, verify, on one rebuild engine."""

from reusekit.surgery.certificate import Certificate
from reusekit.surgery.clones import clone, flatten
from reusekit.surgery.edited import Edited, edit, insert, remove, replace
from reusekit.surgery.edits import Insert, Remove, Replace
from reusekit.surgery.expansion import expand
from reusekit.surgery.extraction import extract
from reusekit.surgery.parts import Split, segment, split
from reusekit.surgery.prefix import prepend

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
