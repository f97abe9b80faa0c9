"""How a conversation is written for a model: four templates with loss masks, or a model's own.

roles   <s>, then <|user|> text for a human turn and <|assistant|> text </s> for an answer.
koala   <s> "BEGINNING OF CONVERSATION: USER: text GPT:" answer </s> "USER: text GPT:" answer </s>:
        plain text, context and answer tokenized apart and no space after "GPT:" (SentencePiece
        writes one by itself).
chatml  <|im_start|>ROLE\\ntext<|im_end|>\\n for each turn: SmolLM2, Qwen.
llama3  <|begin_of_text|>, then <|start_header_id|>ROLE<|end_header_id|>\\n\\ntext<|eot_id|>.

Training uses these alone, as functions. The chat_template of a foreign model is rendered by jinja2
in its sandbox; what a user writes never becomes a special token there either.
"""

import re
from collections.abc import Callable
from typing import Any

from text.dialogues import Dialogue, turns
from text.tokenizer import ROLE_ASSISTANT, ROLE_USER, Tokenizer

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}


class Written:
    """Ids and their loss mask, as they are written."""

    def __init__(self, ids: list[int]):
        self.ids, self.mask = list(ids), [0] * len(ids)

    def put(self, ids: list[int], learned: bool = False) -> None:
        """Write ids; learned: they are to be predicted."""
        self.ids += ids
        self.mask += [int(learned)] * len(ids)


def write(dialogue: Dialogue, tok: Tokenizer, template: str) -> tuple[list[int], list[int]]:
    """(ids, loss mask) of a dialogue, mask 1 where that id is to be predicted.

    Loss on the answers' text and the token that ends it, so that the masked-in ids decode to the
    answers. Which answers are learned: dialogues.turns. A document {"text"} is its text between the
    tokens that open and end it, loss on all but the first.
    """
    if "text" in dialogue:
        out = Written(tok.opening)
        out.put([*tok.encode(dialogue["text"]), tok.eos], True)
        out.mask[0] = 0
        return out.ids, out.mask
    out = TEMPLATES[template](dialogue, tok)
    return out.ids, out.mask


def roles(dialogue: Dialogue, tok: Tokenizer) -> Written:
    """The template of the role tokens."""
    out, user, assistant = Written(tok.opening), tok.user, tok.assistant
    assert user is not None and assistant is not None, "needed() was not asked"
    for speaker, text, learned in turns(dialogue):
        out.put([user if speaker == "human" else assistant])
        out.put(tok.encode(text) + ([] if speaker == "human" else [tok.eos]), learned)
    return out


def koala(dialogue: Dialogue, tok: Tokenizer) -> Written:
    """Koala's plain text."""
    out, context = Written(tok.opening), "BEGINNING OF CONVERSATION:"
    for speaker, text, learned in turns(dialogue):
        context += (" " if context else "") + (f"USER: {text}" if speaker == "human" else "GPT:")
        if speaker == "gpt":
            out.put(tok.encode(context))
            out.put([*tok.encode(text), tok.eos], learned)
            context = ""
    out.put(tok.encode(context))
    return out


def chatml(dialogue: Dialogue, tok: Tokenizer) -> Written:
    """ChatML. The end of an answer is learned, the line end behind it is not."""
    start, end = needed(tok, "chatml")
    out = Written(tok.start)
    for speaker, text, learned in turns(dialogue, join_system=False):
        out.put([start])
        if speaker == "gpt":  # apart, as where a model is to go on from here
            out.put(tok.encode("assistant\n"))
            out.put([*tok.encode(text), end], learned)
        else:
            out.put([*tok.encode(f"{ROLES[speaker]}\n{text}"), end])
        out.put(tok.encode("\n"))
    return out


def llama3(dialogue: Dialogue, tok: Tokenizer) -> Written:
    """Llama 3's headers."""
    start, end_header, end = needed(tok, "llama3")
    out = Written([tok.bos])
    for speaker, text, learned in turns(dialogue, join_system=False):
        out.put([start, *tok.encode(ROLES[speaker]), end_header])
        if speaker == "gpt":
            out.put(tok.encode("\n\n"))
            out.put([*tok.encode(text), end], learned)
        else:
            out.put([*tok.encode(f"\n\n{text}"), end])
    return out


TEMPLATES: dict[str, Callable[[Dialogue, Tokenizer], Written]] = {
    "roles": roles,
    "koala": koala,
    "chatml": chatml,
    "llama3": llama3,
}
NEEDED = {  # the tokens of a template; the last ends an answer
    "roles": (),
    "koala": (),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def needed(tok: Tokenizer, template: str) -> list[int]:
    """The ids of a template's tokens; ValueError where the tokenizer has none, or no such template.

    For a program to call before it does anything slow.
    """
    if template not in TEMPLATES:
        raise ValueError(f"--template {template} is unknown: use {' or '.join(TEMPLATES)}")
    if template == "roles" and tok.user is None:
        raise ValueError(
            "--template roles needs a tokenizer with role tokens: load it so, or use --template "
            "koala"
        )
    ids = [tok.id_of(token) for token in NEEDED[template]]
    missing = [token for token, i in zip(NEEDED[template], ids, strict=True) if i is None]
    if missing:
        raise ValueError(
            f"--template {template} needs the token {missing[0]}, which tokenizer {tok.files[0]} "
            "lacks: use --template roles"
        )
    return [i for i in ids if i is not None]


def stop_ids(tok: Tokenizer, template: str | None) -> frozenset[int]:
    """Ids that end what a model says: its end tokens, and those of its template."""
    ids = tok.eos_ids | ({tok.user} if tok.user is not None else set())
    return frozenset(ids | set(needed(tok, template)[-1:] if template else ()))


# --- prompts ---


def prompt_ids(turns_: list[dict[str, str]], tok: Tokenizer, template: str | None) -> list[int]:
    """Ids of turns {"from", "value"} up to where the assistant begins to speak.

    template None: the chat template that the model brings.
    """
    if template is None:
        return foreign_ids(turns_, tok)
    needed(tok, template)
    empty = {"from": "gpt", "value": ""}
    written = TEMPLATES[template]({"conversations": [*turns_, empty]}, tok)
    end = 1 + (len(tok.encode("\n")) if template == "chatml" else 0)  # of an answer
    return written.ids[:-end]


def foreign_ids(turns_: list[dict[str, str]], tok: Tokenizer) -> list[int]:
    """Ids of a conversation in the chat template of the model's folder.

    Special tokens are those that the template writes. Where a user's text spells one, a mark is put
    into it for the time of rendering, so that it stays text.
    """
    names = {tok.pieces[i].decode("utf-8", "replace"): i for i in tok.special - tok.unused}
    names = {name: i for name, i in names.items() if len(name) > 1}
    said = "".join(t["value"] for t in turns_)
    mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in said)
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")

    def spelt(found):
        return found[0][0] + mark + found[0][1:]

    messages = [
        {"role": ROLES.get(t["from"], t["from"]), "content": pattern.sub(spelt, t["value"])}
        for t in turns_
    ]
    text, ids, at = render(messages, tok), [], 0
    for found in pattern.finditer(text):
        ids += tok.encode(text[at : found.start()].replace(mark, "")) if found.start() > at else []
        ids.append(names[found[0]])
        at = found.end()
    return ids + (tok.encode(text[at:].replace(mark, "")) if at < len(text) else [])


def render(messages: list[dict[str, str]], tok: Tokenizer) -> str:
    """The text of messages in the model's chat template; ValueError, one line, where it refuses."""
    import jinja2.sandbox

    def refuse(message):
        raise ValueError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    known: dict[str, Any] = {"bos_token": tok.pieces[tok.bos].decode("utf-8", "replace")}
    known["eos_token"] = tok.pieces[tok.eos].decode("utf-8", "replace")
    try:
        template = environment.from_string(tok.chat_template or "")
        return template.render(messages=messages, add_generation_prompt=True, **known)
    except Exception as error:  # whatever a template, which is a program, may raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"the chat template of {tok.files[0]} does not take this conversation ({why}): "
            "generate without --chat"
        ) from None


# --- for Hugging Face ---

# A system text is joined to the human turn after it, as in dialogues.turns.
JOINED = """\
{%- set ns = namespace(held='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.held = ns.held + message['content'] + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- USER -}}{{- ns.held + message['content'] -}}
{%- set ns.held = '' -%}
{%- else -%}
{%- if ns.held -%}{{- USER -}}{{- ns.held[:-2] -}}{%- set ns.held = '' -%}{%- endif -%}
{{- ANSWER -}}{{- message['content'] + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if ns.held -%}{{- USER -}}{{- ns.held[:-2] -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- ANSWER -}}{%- endif -%}
"""
CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{{- message['content'] + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""


def jinja(template: str, tok: Tokenizer) -> str | None:
    """The chat template for an export, with which transformers gives our ids.

    None for koala: it tokenizes context and answer apart, which a rendered text cannot say.
    """
    if template == "roles":
        opening = "{{- bos_token -}}\n" if tok.opening else ""
        text = JOINED.replace("USER", f"'{ROLE_USER}'").replace("ANSWER", f"'{ROLE_ASSISTANT}'")
        return opening + text
    start = "{{- bos_token -}}\n" if tok.start else ""
    return {"chatml": start + CHATML, "llama3": LLAMA3}.get(template)
