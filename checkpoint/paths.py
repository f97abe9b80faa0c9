"""A model path: what kind it is, what model it states, and what its content is (fingerprint).

MODEL_PATHS says what a model path is. Never opened: pickled PyTorch files, which can run code.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import model
from checkpoint import MODEL_PATHS, easylm, gguf_file, hub, huggingface, llama2c, runs
from checkpoint.names import file_names
from checkpoint.tensors import Tensor
from host import files
from host.hub_name import is_hub_name


def file_of(path: str | Path) -> str:
    """The file or folder of a model path; of a name on the hub, where its files were put."""
    where = str(path).removeprefix("params::")
    return hub.folder_of(where) if is_hub_name(where) else where


def kind_of(path: str | Path) -> str:
    """Which of "run", "hf", "gguf", "easylm", "bin" a model path is; else ValueError."""
    path, place = str(path), Path(file_of(path))
    if "::" in str(place):
        raise ValueError(
            f"{path}: of EasyLM's forms only params::FILE is read: save the params alone, streaming"
        )
    if not place.exists():
        raise ValueError(f"{place} does not exist: a model is {MODEL_PATHS}")
    if path.startswith("params::"):
        if place.is_dir():
            raise ValueError(f"{path}: {place} is a folder: name the stream in it")
        return "easylm"
    if place.is_dir():
        for kind, file in (("run", "run.json"), ("hf", "config.json")):
            if (place / file).exists():
                return kind
        raise ValueError(f"{path} holds neither run.json nor config.json: a model is {MODEL_PATHS}")
    with open(place, "rb") as file:
        start = file.read(2)
    if start == b"GG":
        return "gguf"
    if start == b"PK" or start[:1] == b"\x80" or place.suffix in (".pt", ".pth", ".pkl"):
        raise ValueError(
            f"{path} is a pickled PyTorch file, which can run code when opened: convert it to "
            "safetensors (transformers' save_pretrained) and name the folder"
        )
    if place.suffix == ".gguf":
        raise ValueError(f"{path} does not begin as a GGUF file does: copy it again")
    if place.suffix != ".bin":
        hint = f"for an EasyLM stream write params::{path}"
        if place.suffix == ".safetensors":
            hint = "name its folder"
        raise ValueError(f"{path} is none of {MODEL_PATHS}: {hint}")
    return "bin"


def record_of(path: str | Path) -> dict[str, Any]:
    """The JSON that says what a model path is; {} where it has none.

    run.json, config.json, or FILE.json beside a stream written here.
    """
    kind, place = kind_of(path), Path(file_of(path))
    stream_record = Path(f"{place}.json")
    place = {"run": place / "run.json", "hf": place / "config.json"}.get(kind, stream_record)
    return files.read_json(place) if kind not in ("bin", "gguf") and place.exists() else {}


def model_config(
    path: str | Path, preset: str | None = None, difference: bool = False
) -> model.Config:
    """The Config of a model path; its V is the file's.

    preset: for an EasyLM stream, which does not tell (one written here does). difference: `diff`
    may have written it. ValueError, one line, for what is no model or not supported.
    """
    kind, record = kind_of(path), record_of(path)
    if record.get("difference") and not difference:
        raise ValueError(
            f"{path} is a difference to a base model: `recover BASE {path} OUT` gives the model"
        )
    if kind == "bin":
        return llama2c.read_config(path)
    if kind == "gguf":
        return gguf_file.read_config(path)
    if kind == "hf":
        return huggingface.read_config(record, Path(file_of(path)) / "config.json")
    if record:
        return stated_config(record, path)
    if not preset:
        raise ValueError(
            f"{path} does not say what model it is: name its preset (--model-preset; train.py: "
            f"--model), one of {', '.join(model.PRESETS)}"
        )
    return with_rows(model.preset(preset), easylm.index(file_of(path)))


def stated_config(record: dict[str, Any], path: str | Path) -> model.Config:
    """Config from the record of a run, or of a stream written here: dataclasses.asdict of one."""
    try:
        fields: dict[str, Any] = dict(record["config"])
        huggingface.check_sizes(fields, path)
        fields["rope_scaling"] = fields["rope_scaling"] and tuple(fields["rope_scaling"])
        numbers = [fields["eps"], fields["theta"], *(fields["rope_scaling"] or ())]
        if not all(type(x) in (int, float) for x in numbers):
            raise TypeError(f"{numbers} are not all numbers")
        return model.Config(**fields)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} has no config of this project ({error}): copy it again") from None


def with_rows(config: model.Config, stream: dict[str, Tensor]) -> model.Config:
    """The config with the vocabulary rows of an EasyLM stream."""
    embed = stream.get(file_names(config)["embed"].easylm or "")
    return config if embed is None else dataclasses.replace(config, V=embed.shape[0])


def fingerprint(path: str | Path, step: int | None = None) -> str:
    """sha256 over a model's files: names, sizes and 64 blocks of each (small files whole).

    13B parameters take a second.
    """
    kind, where = kind_of(path), Path(file_of(path))
    parts = [where]
    if kind == "run":
        where = runs.folder_of(path, runs.resolve_step(path, step))
        parts = sorted(p for p in where.rglob("*") if p.is_file())
    elif kind == "hf":
        parts = [where / "config.json", *sorted(where.glob("*.safetensors"))]
    digest, block = hashlib.sha256(), 65536
    for part in parts:
        size = part.stat().st_size
        digest.update(f"{'' if part == where else part.relative_to(where)} {size}\n".encode())
        with open(part, "rb") as file:
            for i in range(64):
                file.seek(max(size - block, 0) * i // 63)
                digest.update(file.read(block))
    return digest.hexdigest()
