"""One raw row -> dialogues: every public form of chat data into ShareGPT's own.

For text/dialogues.py; nothing to run. A field that changes what a row means is honoured, or the row
is refused by that field's name. Left out: rows with pictures, sounds or films (refused).

A row is one of
  ShareGPT    {"conversations": [{"from", "value"}]}; also `items`; also `messages` with {"role",
              "content"}; also a row that is that list itself; also {"from": [...], "value": [...]}
  HC3         {"question", "chatgpt_answers": [str]}: a dialogue for each of the teacher's answers,
              none for the humans'
  Alpaca      {"instruction", "input", "output"}: the input follows the instruction after a blank
              line ("<noinput>" is none); `history` [[question, answer], ...] comes before
  Dolly       {"instruction", "context", "response"}: the context follows as an input does
  Orca        {"system_prompt", "question", "response"}
  UltraChat   {"data": [str, str, ...]}, the human first; LIMA's {"conversations": [str, str, ...]}
  Capybara    {"conversation": [{"input", "output"}, ...]}
  Koala       {"human_1", "gpt_1", "human_2", ...}, turns in the order of their numbers, human first
  Baize       {"input": "... [|Human|] ... [|AI|] ..."}: what stands before the first mark is the
              recipe, not the dialogue; white space around a turn is the form's; an empty last human
              turn is dropped
  pairs       {"prompt", "completion"} or {"prompt", "response"}: texts, or TRL's lists of turns, of
              which only the completion's answers are learned; {"prompt"} alone has no answer; also
              {"question", "answer"}, {"query", "response"} and {"input", "output"}
  text        {"text": str}
In any of them
  system      a row's `system` or `system_prompt` is a system turn before the others
  weight      0 (also `train`, `trainable`, `loss` or `learn` false or 0, and TRL's `label` false)
              makes an answer, or all answers of a row, context that is not learned
  tools       a row's `tools` or `functions` are a system turn; what a tool gave back is a human
              turn; a call of a tool is an answer that is not learned
  reasoning   `reasoning_content`, `reasoning`, `thinking` beside an answer: the row is refused, for
              the text that it was trained to write would be another
"""

import json
import re
from collections.abc import Callable
from typing import Any

from text.sources import Row

SPEAKERS = {
    "human": "human",
    "user": "human",
    "prompter": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "bot": "gpt",
    "chatgpt": "gpt",
    "model": "gpt",
    "system": "system",
    "developer": "system",
}
TOOL_CALLS = ("function_call", "tool_call")  # speakers
TOOL_RESULTS = ("tool", "function", "observation", "tool_response", "ipython")
LISTS = ("conversations", "conversation", "messages", "items")  # keys of a list of turns
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("input", "output"),
)
CHOICES = ("choices", "options")  # a question that cannot be read without them
SYSTEM = ("system", "system_prompt")
WEIGHTS = ("weight", "train", "trainable", "loss", "learn")
REASONING = ("reasoning_content", "reasoning", "thinking")
TOOLS = ("tools", "functions")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
NO_INPUT = re.compile(r"\s*<\s*no\s?input\s*>\s*", re.I)

BAIZE_MARK = re.compile(r"\[\|(Human|AI)\|\]")
KOALA_KEY = re.compile(r"(human|gpt)_(\d{1,9})")

Dialogue = dict[str, Any]
Turn = dict[str, Any]


def parse_row(row: Row, name: str) -> list[Dialogue]:
    """The dialogues of one raw row (HC3 rows hold several, or none).

    `name` is the id where the row has none. ValueError, a reason without the place, for a malformed
    row.
    """
    value = parse_json(row)
    value = {"messages": value} if isinstance(value, list) else value
    if not isinstance(value, dict):
        raise ValueError(f"{_short(value)} is not an object")
    if isinstance(value.get("id"), (str, int)):
        name = str(value["id"])
    for form in FORMS:
        if (dialogues := form(value, name)) is not None:
            return [_whole(value, dialogue) for dialogue in dialogues]
    if "chosen" in value and "rejected" in value:
        raise ValueError("chosen and rejected are two answers: keep the one to learn as completion")
    if "role" in value or "from" in value:
        raise ValueError("it is one turn by itself: a row is a whole dialogue, a list of turns")
    raise ValueError(
        f"no known form has the keys {_short(sorted(map(str, value)))}: convert it to ShareGPT's "
        '{"conversations": [{"from", "value"}]}'
    )


def parse_json(row: Row) -> Any:
    """The value of a raw row; ValueError, a reason without the place, where it is no JSON."""
    if isinstance(row, dict):
        return row
    try:
        # surrogates in a str are bytes that were not UTF-8
        return json.loads(row.decode() if isinstance(row, bytes) else row.encode().decode())
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({getattr(error, 'msg', error)})") from None


def _whole(row, dialogue):
    """A dialogue with what the row says of all its turns: a system text, whether it is learned."""
    learned = _learned(row, "the row")
    if "text" in dialogue:
        return dialogue if learned else dialogue | {"weight": 0}
    turns = dialogue["conversations"]
    for key in MEDIA:
        if row.get(key):
            raise ValueError(f"the row has {key}, of which only the text around would be left")
    for key in TOOLS:
        if tools := row.get(key):
            tools = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
            turns.insert(0, {"from": "system", "value": tools})
    for key in SYSTEM:
        system = row.get(key)
        if system is not None and _string(system, key).strip():
            turn = {"from": "system", "value": system}
            if turn not in turns[:1]:
                turns.insert(0, turn)
    if not learned:
        for turn in turns:
            if turn["from"] == "gpt":
                turn["weight"] = 0
    return dialogue


def _learned(fields, what):
    """Whether the fields of a row or a turn let it be learned; ValueError for a weight between."""
    learned = fields.get("label") is not False  # another label says what the text is about
    for key in WEIGHTS:
        value = fields.get(key)
        if value is None or value in (0, 1):  # False and True among them
            learned = learned and value != 0
        else:
            raise ValueError(f"{what} has {key} {_short(value)}: 0 and 1 are read")
    return learned


# --- forms: the dialogues of a row, or None where it is of another form ---


def _listed_form(row, name):
    for key in LISTS:
        if key in row:
            return [_dialogue(name, _listed(row[key], key, texts=True))]
    return None


def _hc3_form(row, name):
    if not ("question" in row and "chatgpt_answers" in row):
        return None
    question, answers = _text(row, "question"), row["chatgpt_answers"]
    if not isinstance(answers, list):
        raise ValueError(f"chatgpt_answers is {_short(answers)}, not a list")
    names = [name] if len(answers) == 1 else [f"{name}.{k}" for k in range(len(answers))]
    return [
        _pair(n, question, _string(answer, "an answer"))
        for n, answer in zip(names, answers, strict=True)
    ]


def _instruction_form(row, name):
    """Alpaca and Dolly."""
    answer = "output" if "output" in row else "response"
    if not ("instruction" in row and answer in row):
        return None
    question, more = _text(row, "instruction"), "input" if row.get("input") else "context"
    if row.get(more) and not NO_INPUT.fullmatch(_text(row, more)):
        question = f"{question}\n\n{_text(row, more)}"
    turns = []
    for pair in row.get("history") or ():
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            raise ValueError(f"history holds {_short(pair)}, not a pair of question and answer")
        turns += _pair("", _string(pair[0], "history"), _string(pair[1], "history"))[
            "conversations"
        ]
    _refuse_reasoning(row, "the row")
    return [_dialogue(name, [*turns, *_pair("", question, _text(row, answer))["conversations"]])]


def _orca_form(row, name):
    if not ("question" in row and "response" in row):
        return None
    _refuse_reasoning(row, "the row")
    return [_pair(name, _text(row, "question"), _text(row, "response"))]


def _ultrachat_form(row, name):
    data = row.get("data")
    if not isinstance(data, list) or any(isinstance(x, (dict, list)) for x in data):
        return None
    return [_dialogue(name, _alternating([_string(t, f"turn {n}") for n, t in enumerate(data, 1)]))]


def _koala_form(row, name):
    keys = sorted((int(m[2]), m[1] == "gpt", key) for key in row if (m := KOALA_KEY.fullmatch(key)))
    if not keys:
        return None
    while keys and row[keys[-1][2]] in (None, ""):  # rows of a fixed schema end in empty turns
        keys.pop()
    return [
        _dialogue(name, [_turn("gpt" if gpt else "human", _text(row, k)) for _, gpt, k in keys])
    ]


def _baize_form(row, name):
    if not (isinstance(row.get("input"), str) and BAIZE_MARK.search(row["input"])):
        return None
    parts = BAIZE_MARK.split(_text(row, "input"))[1:]
    turns = [
        _turn("human" if who == "Human" else "gpt", text.strip())
        for who, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [_dialogue(name, turns[:-1] if turns[-1] == _turn("human", "") else turns)]


def _pair_form(row, name):
    for prompt, answer in PAIRS:
        if prompt not in row or answer not in row:
            continue
        if isinstance(row[prompt], list) or isinstance(row[answer], list):
            turns = _listed(row[prompt], prompt)
            for turn in turns:
                if turn["from"] == "gpt":
                    turn["weight"] = 0
            return [_dialogue(name, turns + _listed(row[answer], answer))]
        _refuse_reasoning(row, "the row")
        if choices := next((key for key in CHOICES if row.get(key)), None):
            raise ValueError(f"the row has {choices}: write them into its {prompt}")
        return [_pair(name, _text(row, prompt), _text(row, answer))]
    return None


def _prompt_form(row, name):
    if "prompt" not in row or "chosen" in row or "rejected" in row:
        return None
    if isinstance(row["prompt"], list):
        return [_dialogue(name, _listed(row["prompt"], "prompt"))]
    return [_dialogue(name, [_turn("human", _text(row, "prompt"))])]


def _text_form(row, name):
    if "text" not in row:
        return None
    if "role" in row or "parent_id" in row:  # OpenAssistant's, a message a row
        raise ValueError("it is one turn by itself: a row is a whole dialogue, a list of turns")
    return [{"id": name, "text": _text(row, "text")}]


FORMS: tuple[Callable[[dict, str], list[Dialogue] | None], ...] = (
    _listed_form,
    _hc3_form,
    _instruction_form,
    _orca_form,
    _ultrachat_form,
    _koala_form,
    _baize_form,
    _pair_form,
    _text_form,
    _prompt_form,
)


# --- turns ---


def _listed(turns, key, texts=False):
    """The turns of a list of {"from", "value"} or {"role", "content"}, or of a dict of columns.

    texts: a list of texts will do, the human's first.
    """
    if turns is None:
        return []
    if isinstance(turns, dict) and turns and all(isinstance(c, list) for c in turns.values()):
        if len({len(column) for column in turns.values()}) > 1:
            raise ValueError(f"{key} has columns of different lengths")
        turns = [
            dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)
        ]
    if not isinstance(turns, list):
        raise ValueError(f"{key} is {_short(turns)}, not a list of turns")
    if texts and all(isinstance(turn, str) for turn in turns):
        return _alternating(turns)
    if turns and all(
        isinstance(turn, dict) and {"input", "output"} <= turn.keys() for turn in turns
    ):
        pairs = [[_text(turn, "input"), _text(turn, "output")] for turn in turns]
        return _alternating([text for pair in pairs for text in pair])
    return [_listed_turn(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]


def _alternating(texts):
    """Turns of texts that say nothing of their speakers: the human's first."""
    return [_turn(("human", "gpt")[n % 2], text) for n, text in enumerate(texts)]


def _listed_turn(turn, what):
    if not isinstance(turn, dict):
        raise ValueError(f"{what} is {_short(turn)}, not an object")
    who, text = ("from", "value") if "from" in turn else ("role", "content")
    if who not in turn or (text not in turn and not turn.get("tool_calls")):
        keys = _short(sorted(map(str, turn)))
        raise ValueError(f"{what} has the keys {keys}, not from and value (or role and content)")
    name = turn[who].strip().lower() if isinstance(turn[who], str) else ""
    _refuse_reasoning(turn, what)
    if name in TOOL_RESULTS:
        return _turn("human", _parts(turn.get(text), what))
    calls = turn.get("tool_calls") or turn.get("function_call")
    if name in TOOL_CALLS or calls and SPEAKERS.get(name) == "gpt":
        said = turn.get(text)
        said = [_parts(said, what)] if said else []
        if calls:
            said.append(json.dumps(calls, ensure_ascii=False))
        return _turn("gpt", "\n".join(said), learned=False)
    if name not in SPEAKERS:
        speakers = ", ".join([*SPEAKERS, *TOOL_CALLS, *TOOL_RESULTS])
        raise ValueError(f"{what} is by {_short(turn[who])}: speakers are {speakers}")
    return _turn(SPEAKERS[name], _parts(turn.get(text), what), _learned(turn, what))


def _parts(value, what):
    """The text of a turn: a str, or a list of parts {"type": "text", "text"}."""
    if isinstance(value, list) and all(
        isinstance(p, dict) and p.get("type") == "text" for p in value
    ):
        return "".join(_text(part, "text") for part in value)
    return _string(value, what)


def _refuse_reasoning(fields, what):
    for key in REASONING:
        if fields.get(key):
            raise ValueError(
                f"{what} has {key}, which would be lost: write it into the answer, or take it out"
            )


def _turn(speaker: str, text: str, learned: bool = True) -> Turn:
    """One turn. "weight" 0 marks an answer that is context; other turns have no weight."""
    unlearned = {"weight": 0} if speaker == "gpt" and not learned else {}
    return {"from": speaker, "value": text} | unlearned


def _pair(name, question, answer):
    return _dialogue(name, [_turn("human", question), _turn("gpt", answer)])


def _dialogue(name, turns):
    return {"id": name, "conversations": turns}


# --- values ---


def _text(row, key):
    return _string(row.get(key), key)


def _string(value, what):
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_short(value)}, not a string")
    return value


def _short(value):
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=True, default=str)
        except RecursionError:
            value = "a deeply nested value"
    return repr(value[:60] + "…" if len(value) > 60 else value)
