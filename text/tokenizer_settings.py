"""What a folder says of its tokenizer beside the tokenizer's own file.

tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json,
config.json, chat_template.jinja: start and end tokens, added tokens, the chat template. Nothing is
guessed: a value of the wrong type is refused with its file and its key.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "padding.json",
)


@dataclasses.dataclass
class Settings:
    """A folder's word; None and empty where it says nothing."""

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    bos_id: int | None = None  # as generation_config.json or config.json have it
    eos_ids: tuple[int, ...] = ()  # the same
    add_bos: bool | None = None
    tokenizer_class: str | None = None
    add_prefix_space: bool = False
    model_type: str | None = None
    rows: int | None = None  # of a model whose vocabulary is padded, as Tokenizer.save wrote it
    chat_template: str | None = None
    added: dict[str, int] = dataclasses.field(default_factory=dict)
    special: set[str] = dataclasses.field(default_factory=set)  # of the added, the special ones
    # what save() copies: name -> content
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)


def of_folder(folder: Path) -> Settings:
    """The settings that a folder's files state."""
    contents = {n: (folder / n).read_bytes() for n in NAMES if (folder / n).is_file()}
    return of_files(contents, folder)


def of_files(contents: dict[str, bytes], folder: Path | str) -> Settings:
    """The settings in the files of a folder: name -> content. folder: for messages."""
    records = {n: record(contents[n], f"{folder}/{n}") for n in contents if n.endswith(".json")}
    out = Settings(files={n: c for n, c in contents.items() if n != "config.json"})
    if "chat_template.jinja" in contents:
        out.chat_template = contents["chat_template.jinja"].decode("utf-8", "replace")
    config = Record(records.get("tokenizer_config.json", {}), f"{folder}/tokenizer_config.json")
    tokens = Record(records.get("special_tokens_map.json", {}), f"{folder}/special_tokens_map.json")
    for key in ("bos_token", "eos_token", "pad_token"):
        setattr(out, key, config.token(key) or tokens.token(key))
    out.add_bos = config.get("add_bos_token", bool)
    out.tokenizer_class = config.get("tokenizer_class", str)
    out.add_prefix_space = bool(config.get("add_prefix_space", bool))
    out.chat_template = out.chat_template or config.chat_template()
    added = Record(records.get("added_tokens.json", {}), f"{folder}/added_tokens.json")
    for token in added.value:
        add(out, token, added.get(token, int), False, added.where)
    decoder = config.get("added_tokens_decoder", dict) or {}
    for number, entry in decoder.items():
        entry = entry if isinstance(entry, dict) else {}
        i = int(number) if str(number).isdecimal() else None
        add(out, entry.get("content"), i, bool(entry.get("special")), config.where)
    more = config.value.get("additional_special_tokens") or []
    out.special |= {t["content"] if isinstance(t, dict) else str(t) for t in more}
    for name in ("generation_config.json", "config.json"):
        ids = Record(records.get(name, {}), f"{folder}/{name}")
        out.bos_id = ids.get("bos_token_id", int) if out.bos_id is None else out.bos_id
        out.eos_ids = out.eos_ids or ids.ids("eos_token_id")
    out.model_type = Record(records.get("config.json", {}), "").get("model_type", str)
    out.rows = Record(records.get("padding.json", {}), f"{folder}/padding.json").get("rows", int)
    return out


def add(settings: Settings, token: Any, i: Any, is_special: bool, where: str) -> None:
    """Note one added token; ValueError where it is no pair of text and id."""
    if not isinstance(token, str) or type(i) is not int or i < 0:
        raise ValueError(f"{where}: {token!r}: {i!r} is no added token with its id: copy it again")
    if settings.added.setdefault(token, i) != i:
        raise ValueError(
            f"{where}: {token!r} has the ids {settings.added[token]} and {i}: copy the folder again"
        )
    if is_special:
        settings.special.add(token)


@dataclasses.dataclass
class Record:
    """The object of a JSON file, and its name for messages."""

    value: dict[str, Any]
    where: str

    def get(self, key: str, kind: type) -> Any:
        """The value of a key, None where it has none; ValueError for another type."""
        value = self.value.get(key)
        if value is not None and type(value) is not kind:
            raise ValueError(f"{self.where}: {key} is {value!r}, no {kind.__name__}: copy it again")
        return value

    def token(self, key: str) -> str | None:
        """A token's text: a string, or an object with its content; None for none or ''."""
        value = self.value.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{self.where}: {key} is {value!r}, no token: copy it again")
        return value or None

    def ids(self, key: str) -> tuple[int, ...]:
        """One id, or a list of them."""
        value = self.value.get(key)
        value = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in value):
            raise ValueError(f"{self.where}: {key} is {value!r}, no ids: copy it again")
        return tuple(value)

    def chat_template(self) -> str | None:
        """The chat template: a string, or the one named "default" of a list."""
        value = self.value.get("chat_template")
        if isinstance(value, list):
            named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
            value = named.get("default")
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{self.where}: chat_template is no text: copy it again")
        return value


def record(content: bytes, where: str, parse: Callable = json.loads) -> dict[str, Any]:
    """The object of a JSON file's content; ValueError in one line where it is none."""
    try:
        value = parse(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({str(error)[:80]}): copy it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds no JSON object: copy it again")
    return value
