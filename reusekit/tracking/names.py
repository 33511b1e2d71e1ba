"""The tags by which runs, logged models and versions are found."""

from functools import cache

from mlflow.tracking.context.registry import resolve_tags

KIND = "reusekit.kind"  # of a run: pipeline, trial, phase or evaluation
PROCESS = "reusekit.process"  # of a pipeline's run: by which its death is found, on its machine
KEY = "reusekit.key"  # what was made in one operation, so that repeating it makes nothing twice

ROLE = "reusekit.role"  # of a model: bottom, top, whole or combined
COMBINED = "combined"  # the role of several wholes over one bottom
CUT = "reusekit.cut"  # where the backbone was cut and the head attached; of a bottom, its end
FROZEN_UP_TO = "reusekit.frozen_up_to"  # where bottom and top meet: nothing before is trained
HEAD = "reusekit.head"  # on models of before, for CUT, which stood for FROZEN_UP_TO there
SOURCE = "reusekit.source"  # where the backbone came from
BACKBONE = "reusekit.backbone"  # its digest
DIGEST = "reusekit.digest"  # of the model's configuration and weights
FILE = "reusekit.file"  # SHA-256 of the file that the model is stored in
REFERENCE = "reusekit.reference"  # SHA-256 of a reference to the parts of a whole, or of several
USAGE = "reusekit.usage"  # SHA-256 of the file that names a whole's outputs
LAYERS = "reusekit.layers"  # of a bottom that shares weights with its top: digest of layer names
PARENT = "reusekit.parent"  # the model that this one stands on, by its id
LEFT_OUT = "reusekit.left_out"  # of a run: the backbones that could not be had
DATA = "reusekit.data"  # fingerprint of the training data
THRESHOLDS = "reusekit.thresholds"  # of several labels: from which probability on each applies


@cache
def context_tags() -> dict[str, str]:
    """Return user, source, versions and machine, asked for once since git is slow."""
    return resolve_tags()
