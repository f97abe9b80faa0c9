"""forms.py: every public form becomes the same dialogues; no field that changes one is ignored."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text import forms
from text.dialogues import has_answer, peculiarities, split_key, turns
from text.forms import parse_row

TALK = [("human", "Hi"), ("gpt", "Hello!"), ("human", "Bye"), ("gpt", "See you.")]
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
MESSAGES = [{"role": ROLES[who], "content": text} for who, text in TALK]
SHAREGPT = [{"from": who, "value": text} for who, text in TALK]


def parse(row):
    """The only dialogue of a row, as [(speaker, text)]."""
    [dialogue] = parse_row(row if isinstance(row, str) else json.dumps(row), "name")
    return [(t["from"], t["value"]) for t in dialogue["conversations"]]


def learned(row):
    """The answers of a row that are learned."""
    [dialogue] = parse_row(json.dumps(row), "name")
    return [text for _, text, learn in turns(dialogue) if learn]


@pytest.mark.parametrize(
    "row",
    [
        MESSAGES,  # a row that is the list of its turns
        SHAREGPT,
        {"conversations": {"from": [w for w, _ in TALK], "value": [t for _, t in TALK]}},
        {"messages": {"role": [ROLES[w] for w, _ in TALK], "content": [t for _, t in TALK]}},
        {"data": [t for _, t in TALK]},
        {"conversations": [t for _, t in TALK], "source": "stackexchange"},
        {
            "conversation": [
                {"input": "Hi", "output": "Hello!"},
                {"input": "Bye", "output": "See you."},
            ]
        },
        {"prompt": MESSAGES[:3], "completion": MESSAGES[3:]},
        {"prompt": "Hi", "prompt_id": "7", "messages": MESSAGES},
        {"instruction": "Bye", "input": "", "output": "See you.", "history": [["Hi", "Hello!"]]},
    ],
)
def test_forms_of_several_turns_become_the_same_dialogue(row):
    assert parse(row) == TALK


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Add.", "context": "1 2", "response": "3", "category": "qa"},
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Add.", "input": "1 2", "response": "3"},
        {"question": "Add.\n\n1 2", "response": "3", "id": "flan.1"},
        {"prompt": "Add.\n\n1 2", "completion": "3"},
        {"question": "Add.\n\n1 2", "answer": "3"},
        {"query": "Add.\n\n1 2", "response": "3"},
        {"input": "Add.\n\n1 2", "output": "3"},
        {"prompt": [{"role": "user", "content": "Add.\n\n1 2"}],
         "completion": [{"role": "assistant", "content": "3"}]},
    ],
)  # fmt: skip
def test_forms_of_one_question_become_the_same_dialogue(row):
    assert parse(row) == [("human", "Add.\n\n1 2"), ("gpt", "3")]
    assert learned(row) == ["3"]


@pytest.mark.parametrize("nothing", ["", "<noinput>", " <No Input> ", None])
def test_no_input_is_none(nothing):
    row = {"instruction": "Add.", "input": nothing, "output": "3"}
    assert parse(row) == [("human", "Add."), ("gpt", "3")]


@pytest.mark.parametrize("row", [{"prompt": "Hi"}, {"prompt": MESSAGES[:1]}])
def test_a_prompt_alone_has_nothing_to_learn(row):
    [dialogue] = parse_row(json.dumps(row), "name")
    assert parse(row) == TALK[:1] and not has_answer(dialogue)


@pytest.mark.parametrize("key", ["conversations", "messages", "conversation", "items"])
@pytest.mark.parametrize("nothing", [[], None])
def test_an_empty_dialogue_has_nothing_to_learn(key, nothing):
    [dialogue] = parse_row(json.dumps({"id": "a", key: nothing}), "name")
    assert dialogue == {"id": "a", "conversations": []} and not has_answer(dialogue)


# --- what changes the meaning of a row or a turn ---


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_rows_system_text_is_its_first_turn(key):
    system = ("system", "Be brief.")
    assert parse({key: "Be brief.", "conversations": SHAREGPT}) == [system, *TALK]
    assert parse({key: "Be brief.", "instruction": "Hi", "output": "Hello!"}) == [system, *TALK[:2]]
    assert parse({key: "Be brief.", "question": "Hi", "response": "Hello!"}) == [system, *TALK[:2]]
    assert parse({key: " ", "conversations": SHAREGPT}) == TALK
    twice = [{"from": "system", "value": "Be brief."}, *SHAREGPT]
    assert parse({key: "Be brief.", "conversations": twice}) == [system, *TALK]
    with pytest.raises(ValueError, match=f"{key} is '3', not a string"):
        parse({key: 3, "conversations": SHAREGPT})


NOT_LEARNED = [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": 0}, {"loss": False},
               {"learn": False}, {"trainable": False}, {"label": False}]  # fmt: skip


@pytest.mark.parametrize("mark", NOT_LEARNED)
def test_an_answer_that_is_not_to_be_learned_is_context(mark):
    for turn_list in (MESSAGES, SHAREGPT):
        marked = [turn_list[0], turn_list[1] | mark, *turn_list[2:]]
        assert learned({"messages": marked}) == ["See you."] and parse(marked) == TALK
        [dialogue] = parse_row(json.dumps(marked), "name")
        [again] = parse_row(json.dumps(dialogue), "name")  # as a mix writes it
        assert again == dialogue and turns(again) == turns(dialogue)


@pytest.mark.parametrize("mark", NOT_LEARNED)
def test_a_row_that_is_not_to_be_learned_has_no_answer(mark):
    assert learned({"messages": MESSAGES} | mark) == []
    assert learned({"prompt": "a", "completion": "b"} | mark) == []
    assert learned({"instruction": "a", "output": "b"} | mark) == []
    assert not has_answer(parse_row(json.dumps({"text": "a"} | mark), "name")[0])


def test_marks_that_let_an_answer_be_learned_change_nothing():
    for mark in (
        {"weight": 1},
        {"train": True},
        {"loss": None},
        {"label": True},
        {"label": "news"},
    ):
        assert learned({"messages": [MESSAGES[0], MESSAGES[1] | mark]} | mark) == ["Hello!"]


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"loss": "no"}, {"train": [1]}])
def test_a_weight_between_is_refused_by_name(mark):
    [(key, _)] = mark.items()
    with pytest.raises(ValueError, match=f"turn 2 has {key} .*: 0 and 1 are read"):
        parse({"messages": [MESSAGES[0], MESSAGES[1] | mark]})
    with pytest.raises(ValueError, match=f"the row has {key} "):
        parse({"messages": MESSAGES} | mark)


def test_of_a_prompt_of_several_turns_only_the_completion_is_learned():
    assert learned({"prompt": MESSAGES[:3], "completion": MESSAGES[3:]}) == ["See you."]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_beside_an_answer_is_refused_by_name(key):
    with pytest.raises(ValueError, match=f"turn 2 has {key}, which would be lost"):
        parse([MESSAGES[0], MESSAGES[1] | {key: "Hm."}])
    with pytest.raises(ValueError, match=f"the row has {key}"):
        parse({"prompt": "a", "response": "b", key: "Hm."})
    assert parse([MESSAGES[0], MESSAGES[1] | {key: None}]) == TALK[:2]


def test_tools_are_context_and_never_learned():
    call = {"id": "c", "type": "function", "function": {"name": "w", "arguments": "{}"}}
    openai = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    shared = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "w"}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "It is sunny."},
    ]
    for rows in (openai, shared):
        said = parse(rows)
        assert learned(rows) == ["It is sunny."] and '"w"' in said[1][1]
        assert [who for who, _ in said] == ["human", "gpt", "human", "gpt"]
        assert said[2] == ("human", "sunny")
    del openai[1]["content"]
    assert learned(openai) == ["It is sunny."]


def test_a_rows_tools_are_context():
    tools = [{"name": "w"}]
    system = [("system", "Be brief."), ("system", '[{"name": "w"}]')]
    assert parse({"tools": tools, "system": "Be brief.", "messages": MESSAGES}) == system + TALK
    assert parse({"functions": '[{"name": "w"}]', "messages": MESSAGES}) == system[1:] + TALK
    assert parse({"tools": [], "functions": None, "messages": MESSAGES}) == TALK


@pytest.mark.parametrize("key", ["image", "images", "videos", "audios"])
def test_a_row_about_a_picture_is_refused_by_name(key):
    with pytest.raises(ValueError, match=f"the row has {key}, of which only the text"):
        parse({"messages": MESSAGES, key: ["a.png"]})
    assert parse({"messages": MESSAGES, key: []}) == TALK


def test_a_pair_to_prefer_one_of_is_refused_by_name():
    with pytest.raises(ValueError, match="chosen and rejected are two answers"):
        parse({"prompt": "a", "chosen": "b", "rejected": "c"})


def test_a_question_without_its_choices_is_refused_by_name():
    for key in ("choices", "options"):
        with pytest.raises(ValueError, match=f"the row has {key}: write them into its question"):
            parse({"question": "Which?", key: ["a", "b"], "answer": "B"})


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Hi### Assistant: Hello!",
        "<|im_start|>user\nHi",
        "[INST] Hi [/INST] Hello!",
        "\n\nHuman: Hi\n\nAssistant: Hello!",
        "USER: Hi ASSISTANT: Hello!",
    ],
)
def test_a_dialogue_written_into_a_text_is_told(text):
    [document] = parse_row(json.dumps({"text": text}), "name")
    assert document["text"] == text and "marks of turns" in peculiarities(document)[0]
    [plain] = parse_row(json.dumps({"text": "A human: hi. # Instruction: none"}), "name")
    assert peculiarities(plain) == []


def test_a_message_of_openassistant_is_a_turn_by_itself():
    with pytest.raises(ValueError, match="one turn by itself"):
        parse({"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"})


def test_a_turn_by_itself_is_no_dialogue():
    with pytest.raises(ValueError, match="one turn by itself"):
        parse(MESSAGES[0])


@pytest.mark.parametrize(
    "row",
    [
        {"data": [1]}, {"history": [["a"]], "instruction": "b", "output": "c"}, {"messages": [[]]},
        {"messages": {"role": ["user"], "content": []}}, {"prompt": [1], "completion": [2]},
        {"messages": [{"role": "tool"}]}, {"messages": [{"role": {}, "content": "a"}]},
        {"question": "a", "chatgpt_answers": [[]]}, {"prompt": ["a"], "completion": ["b"]},
        {"question": "a", "answer": ["b"]}, {"prompt": ["a"]}, {"prompt": "a", "completion": ["b"]},
        {"conversations": "x"}, {"system": [], "prompt": "a"}, [1], [[]], 3, None, "a",
    ],
)  # fmt: skip
def test_rows_of_wrong_types_are_refused_in_one_line(row):
    with pytest.raises(ValueError) as error:
        parse_row(json.dumps(row), "name")
    assert "\n" not in str(error.value)


def test_deep_nesting_is_refused_wherever_it_lies():
    deep = "[" * 100_000
    for row in (deep, '{"messages": ' + deep, '{"text": ' + "[" * 900 + "]" * 900 + "}"):
        with pytest.raises(ValueError):
            parse_row(row, "name")


KEYS = [
    *("id", "question", "chatgpt_answers", "instruction", "input", "output", "data", "context"),
    *("response", "history", "human_1", "gpt_1", "gpt_2", "prompt", "completion", "text", "system"),
    *("system_prompt", "images", "label", "chosen"),
    *(*forms.LISTS, *forms.WEIGHTS, *forms.TOOLS, *forms.REASONING),
]
TURN_KEYS = ["from", "value", "role", "content", "tool_calls", "function_call", "weight"]
TURN_KEYS += ["thinking", "label"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["user", "gpt", "tool", "function_call", "[|Human|] a [|AI|] b", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(TURN_KEYS), inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@settings(max_examples=1500, deadline=None)
def test_any_row_is_dialogues_or_one_line(row):
    try:
        found = parse_row(json.dumps(row), "name")
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return
    for dialogue in found:
        assert isinstance(dialogue["id"], str)
        if "text" not in dialogue:
            for speaker, text, learn in turns(dialogue):
                assert speaker in ("human", "gpt") and isinstance(text, str)
                assert not learn or speaker == "gpt"
        assert parse_row(json.dumps(dialogue), "name") == [dialogue]
        has_answer(dialogue), peculiarities(dialogue), split_key(dialogue)
