"""The JSON of a request, read strictly: what is odd is refused by name, nothing is passed over.

For every address that takes a body; nothing to run. Left out: what the fields mean
(serve/protocol.py).
"""

import json
import math
from typing import Any, NoReturn

MISSING = object()
INT32 = 2**31 - 1


class Refusal(Exception):
    """An answer other than 200, in OpenAI's form. param: the field at fault, where one is."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_s: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code, self.retry_s = code, retry_s

    @property
    def kind(self) -> str:
        """The `type` of the error, as OpenAI names it."""
        names = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}
        return names.get(self.status, "server_error" if self.status >= 500 else "invalid_request")

    def body(self) -> dict:
        """{"error": …}."""
        kind = self.kind + "_error" * (self.kind == "invalid_request")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says besides."""
        said = {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}
        return said | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refuse(param: str, rule: str, code: str | None = None) -> NoReturn:
    """400 for a field: "{param} {rule}"."""
    raise Refusal(400, f"{param} {rule}", param, code)


def read(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body; Refusal for all else."""

    def pairs(items):
        out = {}
        for name, value in items:
            if name in out:
                raise ValueError(f"the key {short(name)} stands there twice")
            out[name] = value
        return out

    def constant(name):
        raise ValueError(f"{name} is no number in JSON")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is not a JSON object")
    return value


def short(value: object) -> str:
    """A value as an error may repeat it."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value).__name__)
    return text if len(text) <= 60 else text[:57] + "..."


# --- values ---


def text_of(value: Any, param: str, most: int | None = None) -> str:
    """A string that UTF-8 can write."""
    if not isinstance(value, str):
        refuse(param, f"is {short(value)}: a string is needed")
    if most is not None and len(value) > most:
        refuse(param, f"has {len(value):,} characters: at most {most:,}")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(param, "holds half a surrogate pair: it is no text")
    return value


def int_of(value: Any, param: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`; 3.0 is one, true is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        refuse(param, f"is {short(value)}: a whole number from {least:,} to {most:,} is needed")
    return value


def number_of(value: Any, param: str, least: float, most: float) -> float:
    """A number from `least` to `most`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or not math.isfinite(value):
        refuse(param, f"is {short(value)}: a number from {least:g} to {most:g} is needed")
    return float(value)


def bool_of(value: Any, param: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        refuse(param, f"is {short(value)}: true or false is needed")
    return value


class Fields:
    """The fields of an object, each taken once; `done` refuses what nobody took.

    null is the same as absent, as OpenAI's clients mean it.
    """

    def __init__(self, values: dict[str, Any], where: str = ""):
        self.left = {name: value for name, value in values.items() if value is not None}
        self.where = where

    def name(self, name: str) -> str:
        """A field as errors call it."""
        return f"{self.where}.{name}" if self.where else name

    def take(self, name: str, default: Any = MISSING) -> Any:
        """The field's value as it came."""
        value = self.left.pop(name, default)
        if value is MISSING:
            refuse(self.name(name), "is missing")
        return value

    def text(self, name: str, default: Any = MISSING, most: int | None = None) -> str:
        value = self.take(name, default)
        return value if value is default else text_of(value, self.name(name), most)

    def whole(self, name: str, default: Any, least: int, most: int = INT32) -> Any:
        value = self.take(name, default)
        return value if value is default else int_of(value, self.name(name), least, most)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.take(name, default)
        return value if value is default else number_of(value, self.name(name), least, most)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        return value if value is default else bool_of(value, self.name(name))

    def only(self, name: str, *allowed: Any) -> None:
        """A field that may stand there where it changes nothing: with one of these values."""
        value = self.take(name, None)
        same = (type(value) is type(a) or not isinstance(value, bool | str) for a in allowed)
        if value is None or any(s and value == a for s, a in zip(same, allowed, strict=True)):
            return
        refuse(
            self.name(name),
            f"is {short(value)}, which is not supported: leave it out",
            "unsupported_parameter",
        )

    def done(self) -> None:
        """Refuse what is left."""
        for name in self.left:
            refuse(
                text_of(self.name(name), "a key")[:80],
                "is not supported: leave it out",
                "unsupported_parameter",
            )
