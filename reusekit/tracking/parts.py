"""A fine-tuned model as three folders, bottom, top and whole, with all there is to say of them."""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reusekit.backbones import Backbone
from reusekit.backbones.digest import model_digest
from reusekit.digests import digest, file_digest
from reusekit.surgery import Split
from reusekit.tracking import names
from reusekit.tracking.ledger import Ledger
from reusekit.tracking.registry import check_name
from reusekit.tracking.saved import WEIGHTS, needs_reusekit, save_model
from reusekit.tracking.usage import USAGE, Usage

ROLES = ("bottom", "top", "whole")
MODELS = "models.json"


@dataclass(frozen=True)
class Registration:
    """The registered name of a model.

    Attributes:
        name: Its name in the registry; its top gets that name with `-top` behind it, its bottom is
            registered under the backbone's name with `-bottom` behind it.
        data: Fingerprint of the training data.
        cut: Where the backbone was cut and the head attached; None for where bottom and top meet.
        alias: The alias that is moved to the new version; None for `champion`, which the first
            version gets and later ones do not.
        metrics: The metrics of the whole model.
        card: Markdown that describes the version.
        standalone: Whether the whole is stored with weights of its own. Otherwise a reference to
            its bottom and top is stored, which are joined where it is loaded.
        tags: What else is said of top and whole.
        usage: How the whole's inputs are treated, and the names of its outputs.
    """

    name: str
    data: str
    cut: str | None = None
    alias: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    card: str = ""
    standalone: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    usage: Usage | None = None


def prepare(
    folder: Path,
    parts: Split,
    backbone: Backbone,
    ledgers: Mapping[str, Ledger],
    registration: Registration,
) -> None:
    """Write bottom, top and whole with signature, ledger and tags; no tracking server is asked.

    `reusekit.tracking.send` takes the folder to a server.

    Args:
        folder: Where to; made if it is not there.
        parts: The fine-tuned model, cut in two.
        backbone: Where it comes from.
        ledgers: The costs of `bottom`, `top` and `whole`.
        registration: Its name in the registry, and more to say of it.

    Raises:
        TrackingError: No address would find that name again.
    """
    check_name(registration.name)
    models = dict(zip(ROLES, (parts.bottom, parts.top, parts.source), strict=True))
    common = {
        names.SOURCE: backbone.source,
        names.BACKBONE: backbone.digest,
    }
    end = parts.frontier[0]
    trained = {
        names.CUT: registration.cut or end,
        names.FROZEN_UP_TO: end,
        names.DATA: registration.data,
        **registration.tags,
    }
    registered = {
        # A file may be called what the registry does not take.
        "bottom": f"{re.sub('[/:]', '-', backbone.name)[:200]}-bottom",
        "top": f"{registration.name}-top",
        "whole": registration.name,
    }
    whole, bottom = (
        f"[{registered[role]}](#/models/{quote(registered[role], safe='')})"
        for role in ("whole", "bottom")
    )
    about = {
        "bottom": f"The bottom of models made from `{backbone.source}`, as it was before any "
        f"training. It ends at `{end}`.",
        "top": f"The top of {whole}: what was trained, the head included. It begins behind `{end}` "
        f"and stands on {bottom}.",
        "whole": registration.card,
    }
    said: dict[str, Any] = {}
    for role, model in models.items():
        by_reference = role == "whole" and not registration.standalone
        usage = registration.usage if role == "whole" else None
        save_model(model, folder / role, by_reference, usage)
        said[role] = {
            "name": re.sub(r"[/.:%\"']", "-", registered[role]),  # what MLflow takes for a model
            "registered": registered[role],
            "about": about[role],
            "tags": {
                **common,
                # Others have the same bottom, whatever it is used for.
                **({names.CUT: end} if role == "bottom" else trained),
                names.ROLE: role,
                names.DIGEST: model_digest(model),
                **({} if by_reference else {names.FILE: file_digest(folder / role / WEIGHTS)}),
                **({names.USAGE: file_digest(folder / role / USAGE)} if usage else {}),
            },
            "params": ledgers[role].params(),
            "metrics": ledgers[role].numbers(),
            # Such a version is fetched by reusekit, which joins it, or makes its layers known.
            "through_reusekit": by_reference or needs_reusekit(model),
        }
    if parts.shared:  # which are named by the layers they are of, and so need these names
        layers = [layer.name for layer in parts.bottom.layers]
        said["bottom"]["tags"][names.LAYERS] = digest(layers)[:32]
    content = {
        "key": uuid.uuid4().hex,
        "models": said,
        "whole": parts.source.name,
        "metrics": dict(registration.metrics),
        "shared": parts.shared,
        "parent": backbone.parent,
        "alias": registration.alias,
        "standalone": registration.standalone,
    }
    (folder / MODELS).write_text(json.dumps(content, indent=1))
