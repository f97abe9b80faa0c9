"""What can be refused before data is packed and weights are read: model, tokenizer, block, batch.

For train.py; nothing to run. Each raises a ValueError of one line. Left out: what flags alone
decide (flags.py), the run directory (run.py).
"""

import dataclasses

import model
from checkpoint import load, paths, vocabulary
from text import templates, tokenizer
from training.flags import Settings


def resolve_model(settings: Settings) -> tuple[model.Config, tokenizer.Tokenizer]:
    """(the config, with the tokenizer's vocabulary; the tokenizer)."""
    roles, init = settings.template == "roles", settings.init
    if init:
        config = paths.model_config(init, settings.model)
        tok = vocabulary.model_tokenizer(init, config, settings.tokenizer, roles)
        load.check(init, settings.model)  # by the headers: a truncated file is found here
    else:
        config = model.preset(settings.model or "")
        tok = tokenizer.load(settings.tokenizer, roles)
    templates.needed(tok, settings.template)  # says which token is missing
    return dataclasses.replace(config, V=tok.size), tok


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
