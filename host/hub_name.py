"""Whether a model path is a name on the Hugging Face hub, ORG/NAME.

For whoever fetches it (checkpoint/hub.py) and whoever plans with it and opens no model (study/).
Left out: whether the hub has it.
"""

import re
from pathlib import Path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_name(path: str) -> bool:
    """Whether a path is no path here but may be a name there.

    Where its first part is a folder here, it is a path that was mistyped.
    """
    here = Path(path)
    return HUB_NAME.fullmatch(path) is not None and not here.exists() and not here.parent.exists()
