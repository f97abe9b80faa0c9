"""The page of a result: what it says, what it shows once, and text that stays text.

python -m pytest tests/tasks/test_page.py
"""

import json
import re

from tasks import page

RESULT = {
    "task": "mmlu",
    "model": "out/run",
    "score": 0.2456,
    "n": 228,
    "interval": [0.194, 0.305],
    "chance": 0.25,
    "shots_used": {"5": 2, "0": 1},
    "prompts_cut": 1,
    "subjects": {
        f"subject_{i}": {"score": i / 10, "n": 4, "interval": [0.1, 0.9]} for i in range(9)
    },
    "settings": {"sample": "the first 4", "subjects": None, "note": "<b>"},
}


def items(count, subject="law"):
    shots = "These are questions about law.\n\nIs it so?\nAnswer: A\n\nIs it not?\nAnswer: B\n\n"
    return [
        {
            "id": f"{subject}/{i}",
            "subject": subject,
            "shots": 2,
            "prompt": f"{shots}Is it {i}?\nAnswer:",
            "output": " A",
            "extracted": "A",
            "gold": "AB"[i % 2],
            "verdict": i % 2 == 0,
        }
        for i in range(count)
    ]


def data_of(text):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S)[1])


def test_a_share_is_a_percentage_beside_chance_and_what_a_reader_must_know():
    text = page.page(RESULT, items(3))
    assert '<div class="score">24.6 %</div>' in text
    assert "95 % interval 19.4 % to 30.5 %, n = 228" in text
    assert "guessing gives 25.0 %" in text and 'class="chance" style="left:25.00%"' in text
    assert "a sample: the first 4" in text
    assert "shots were dropped where a prompt did not fit the model: 2 with 5, 1 with 0" in text
    assert "1 prompts did not fit without any shot" in text


def test_a_perplexity_is_no_percentage():
    result = {"task": "perplexity", "score": 0.9, "unit": "a token", "n": 1, "interval": None}
    text = page.page(result, [{"id": "0", "nats": 1.0}])
    assert '<div class="score">0.9 a token</div>' in text and 'class="bar"' not in text


def test_the_subjects_of_a_result_are_not_hidden_by_the_setting_of_that_name():
    text = page.page(RESULT, items(3))
    assert "<summary>9 subjects</summary>" in text
    assert "<td>subject 3</td><td>30.0 %</td><td>10.0 % to 90.0 %</td>" in text
    assert "<td>subjects</td><td>null</td>" in text.split("<summary>Settings</summary>")[1]
    assert "<b>" not in text


def test_what_prompts_share_is_kept_once():
    data = data_of(page.page(RESULT, items(5) + items(1, "anatomy")))
    (same,) = data["shared"]
    assert same["items"] == 5 and same["text"].endswith("Answer: B\n\n")
    for i, (row, item) in enumerate(zip(data["items"], items(5), strict=False)):
        assert same["text"] + row["prompt"] == item["prompt"] and row["shared"] == 0, i
    assert "shared" not in data["items"][5], "one prompt shares nothing"


def test_what_is_put_into_the_page_is_not_searched_again():
    text = page.page(RESULT | {"model": "{{data}} {{shown}}"}, items(1))
    assert "{{data}} {{shown}}" in text and "{{title}}" not in text
