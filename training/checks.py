"""What can be refused before data is packed and weights are read: model, tokenizer, block, batch.

For train.py; nothing to run. Each raises a ValueError of one line. Left out: what flags alone
decide (flags.py), the run directory (run.py).
"""

import dataclasses
import pathlib

import model
from checkpoint import load, paths
from text import tokenizer
from training.flags import Settings


def resolve_model(settings: Settings) -> tuple[model.Config, tokenizer.Tokenizer]:
    """(the config, with the tokenizer's vocabulary; the tokenizer)."""
    init = settings.init
    file_config = paths.model_config(init, settings.model) if init else None
    path = tokenizer_path(settings)
    roles = settings.template == "roles"
    tok = tokenizer.load(str(path), roles=roles)
    config = file_config or model.preset(settings.model)
    if file_config is not None:
        if file_config.V not in (tok.base_size, tok.base_size + 2):
            raise ValueError(
                f"--tokenizer {path} has {tok.base_size} tokens (+ 2 roles) but the weights of "
                f"{init} have {file_config.V}: use the tokenizer the model was made with"
            )
        if file_config.V == tok.base_size + 2 and not roles:
            tok = tokenizer.load(str(path), roles=True)  # the weights have the role tokens already
        # The headers say where each tensor lies: a truncated file is found here.
        load.open_weights(init, file_config)
    return dataclasses.replace(config, V=tok.size), tok


def tokenizer_path(settings: Settings) -> pathlib.Path:
    """--tokenizer, or what lies beside --init."""
    if settings.tokenizer:
        return pathlib.Path(settings.tokenizer)
    path = pathlib.Path(settings.init.split("::", 1)[-1])
    folder = path.parent if path.is_file() else path
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def fit_block(settings: Settings, origin: str, config: model.Config) -> tuple[int, str | None]:
    """(tokens a row, a note or None). origin: where --block comes from; a default fits itself."""
    block = settings.block
    if block <= config.P:
        return block, None
    if origin in ("paper", "quickstart"):
        return config.P, None
    if config.family == "gpt2":
        raise ValueError(
            f"--block {block} is longer than the {config.P:,} positions of the model: use "
            f"--block {config.P} or less"
        )
    return block, (
        f"--block {block} is longer than the {config.P:,} positions the model was made for: RoPE "
        "extrapolates badly"
    )


def check_batch(batch: int, accumulate: int, data_ranks: int) -> None:
    unit = data_ranks * accumulate
    if batch % unit:
        raise ValueError(
            f"--batch {batch} does not divide by {data_ranks} data ranks x {accumulate} "
            f"micro-batches: use --batch {max(batch // unit, 1) * unit} or a smaller mesh"
        )
