"""The tokenizer of a model path, which its vocabulary fits: role tokens, padding rows."""

from pathlib import Path

import model
from checkpoint import paths
from host.terminal import say
from text import tokenizer
from text.templates import TEMPLATES
from text.tokenizer import Tokenizer

MOST_PADDING = 1024  # rows of no token that a vocabulary may have
LEAST_SHARE = 8  # and at most one in so many


def place_of(path: str | Path, named: str | None = None) -> str:
    """Where the tokenizer of a model path lies, unless one is named."""
    kind, where = paths.kind_of(path), Path(paths.file_of(path))
    within = {"run": where / "tokenizer", "hf": where, "gguf": where}
    return str(named or within.get(kind, where.parent))


def model_tokenizer(
    path: str | Path, config: model.Config, named: str | None = None, add_roles: bool = False
) -> Tokenizer:
    """The tokenizer of a model path, with role tokens where the model has them, or gets them.

    Two rows more than the tokenizer has ids are role tokens only where the folder says so: by their
    names, or in the record of a run or a stream written here. Other rows, as where a vocabulary is
    padded, are ids of no token, and are never sampled. ValueError where the two do not fit.
    """
    where = place_of(path, named)
    bare = tokenizer.load(where, roles=False)
    rows = config.V - bare.base_size
    roles = rows >= 2 and has_roles(path, rows, bare)
    rows -= 2 * roles
    if rows < 0 or rows > MOST_PADDING or rows * LEAST_SHARE > max(bare.base_size, LEAST_SHARE):
        tokenizer.check_size(bare, config.V, str(path))  # says which sizes there are
    if rows > 0:
        say(f"note: {path} has {rows} rows more than its tokenizer has ids: they are never sampled")
    if not (rows or roles or add_roles):
        return bare
    return tokenizer.load(where, roles=roles or add_roles, rows=config.V - 2 * roles)


def has_roles(path: str | Path, rows: int, bare: Tokenizer) -> bool:
    """Whether the last two of a model's rows are the role tokens."""
    says = paths.record_of(path).get("roles")
    if isinstance(says, bool):
        return says
    if paths.kind_of(path) == "run":  # one that does not say is older than padded vocabularies
        return rows == 2
    return bare.has_role_names and rows == 2


def roles_mark(path: str | Path, config: model.Config, named: str | None) -> dict[str, bool]:
    """{"roles": whether the vocabulary ends in role tokens}, for a file that cannot say; or {}."""
    says = paths.record_of(path).get("roles")
    if isinstance(says, bool):
        return {"roles": says}
    try:
        return {"roles": model_tokenizer(path, config, named).roles}
    except ValueError:  # no tokenizer lies there
        return {}


def trained_template(path: str | Path, tok: Tokenizer | None) -> str | None:
    """The template of a model's conversations; None where it is the folder's own, or unknown."""
    if tok is None or tok.roles:
        return "roles" if tok else None
    if paths.kind_of(path) != "run":
        return None
    flags = paths.record_of(path).get("args")
    template = flags.get("template") if isinstance(flags, dict) else None
    return template if template in TEMPLATES else None
