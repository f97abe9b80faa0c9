"""MMLU: its prompt letter for letter, its files with all that can be wrong in them, the letter of
an answer in words, the accuracy of subjects and groups.

python -m pytest tests/tasks/test_mmlu.py --data DIR
"""

import itertools
import re
import time

import numpy as np
import pytest

from tasks import mmlu
from tasks.mmlu import CATEGORIES, CATEGORY, SUBCATEGORIES, SUBCATEGORY, accuracies
from tasks.scores import wilson

DEV = '"What is 2 + 2?",3,4,5,6,B\n"Which letter, ""quoted"", is first?",A,B,C,D,A\n'


def mmlu_folder(
    tmp_path, test="Is it 1.0?,yes,no,None,maybe,C\n", dev=DEV, subject="college_mathematics"
):
    for split, text in (("test", test), ("dev", dev)):
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_mmlu_prompt_is_the_original_one(tmp_path):
    folder = mmlu_folder(tmp_path)
    shots, (question,) = (
        mmlu.read_questions(folder, "dev", "college_mathematics"),
        mmlu.read_questions(folder, "test", "college_mathematics"),
    )
    assert mmlu.prompt_of("college_mathematics", shots, question) == (
        "The following are multiple choice questions (with answers) about  college mathematics.\n\n"
        "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B\n\n"
        'Which letter, "quoted", is first?\nA. A\nB. B\nC. C\nD. D\nAnswer: A\n\n'
        "Is it 1.0?\nA. yes\nB. no\nC. None\nD. maybe\nAnswer:"
    )
    assert mmlu.prompt_of("x", [], question).startswith(
        "The following are multiple choice questions (with answers) about  x.\n\nIs it 1.0?\n"
    )
    assert question.letter == "C" and question.id == "college_mathematics/0"


@pytest.mark.parametrize(
    "test, says",
    [
        ("q,a,b,c,B\n", "row 1 has 5 columns"),
        ("q,1,2,3,4,A\nq,1,2,3,4,E\n", "row 2: the answer is 'E'"),
        ("q,1,2,3,4,a\n", "row 1: the answer is 'a'"),
        ("", "is empty"),
        ('q,1,2,3,4,A\n"q,1,2,3,4,A\n', "row 2 is not CSV"),
    ],
)
def test_a_bad_mmlu_file_is_named_with_its_row(tmp_path, test, says):
    with pytest.raises(ValueError, match=says) as error:
        mmlu.read_questions(mmlu_folder(tmp_path, test), "test", "college_mathematics")
    assert "college_mathematics_test.csv" in str(error.value) and "\n" not in str(error.value)


def test_missing_mmlu_files_and_subjects_are_named(tmp_path):
    folder = mmlu_folder(tmp_path)
    (folder / "dev" / "college_mathematics_dev.csv").unlink()
    with pytest.raises(ValueError, match="college_mathematics_dev.csv does not exist.*--shots 0"):
        mmlu.read_questions(folder, "dev", "college_mathematics")
    with pytest.raises(ValueError, match="--subjects astrology"):
        mmlu.list_subjects(folder, "test", ["astrology"])
    with pytest.raises(ValueError, match="holds no"):
        mmlu.list_subjects(folder / "dev", "test")


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        (" C.", "C"),
        ("(D) because", "D"),
        ("The answer is A.", "A"),
        ("Answer: **B**", "B"),
        ("I am not sure", None),
        ("A dog", None),
        ("", None),
        ("Apple", None),
        ("b", None),
        ("B's", None),
        ("E", None),
        ("Both A and B", None),
        ("A", "A"),
        ("**B.** foo", "B"),
        ("Answer: $B$", "B"),
        ("Answer: \\text{D}", "D"),
        ("$\\boxed{\\text{C}}$", "C"),
        ("The correct option is B.", "B"),
        ("Option B", "B"),
        ("answer - B", "B"),
        ("The best answer is: **B. foo**", "B"),
        ("\uff22", "B"),  # a full-width letter
        ("A and B are wrong, so the answer is D", "D"),
        ("C is wrong because it ignores x. The answer is B.", "B"),
        ("At first one may say the answer is A. However, the answer is B.", "B"),
        ("Let's think. A. would give 3, B. gives 4. Final answer: B", "B"),
        ("A is the correct answer", "A"),
        ("<think>The answer is A? no</think>\nB", "B"),
        ("so A fits best.</think>The answer is C.", "C"),
        ("<think>The answer is A", None),  # cut off while it thought
        ("B or C", None),
        ("Because of D'Arcy", None),
        ("Antwort: B", None),
        ("C is wrong", None),
    ],
)
def test_the_letter_of_a_free_answer_is_the_one_it_gives(text, letter):
    assert mmlu.extract_letter(text) == letter


@pytest.mark.parametrize(
    "piece",
    [" ", "answer ", "<think>", "</think>", "\\boxed{", "A is the ", "*", "answer:((((", "{"],
)
def test_a_long_strange_answer_is_read_in_linear_time(piece):
    begin = time.process_time()
    mmlu.extract_letter(piece * (200_000 // len(piece)))
    assert time.process_time() - begin < 3, "twice the length takes twice as long, not four times"


def test_blank_lines_and_companion_files_are_no_questions(tmp_path):
    folder = mmlu_folder(tmp_path, "q,1,2,3,4,A\n\nr,1,2,3,4,B\n \n\n", subject="anatomy")
    (folder / "test" / "._anatomy_test.csv").write_bytes(b"\0\5\x16\7 Mac OS X")
    assert mmlu.list_subjects(folder, "test") == ["anatomy"]
    questions = mmlu.read_questions(folder, "test", "anatomy")
    assert [(q.id, q.letter) for q in questions] == [("anatomy/0", "A"), ("anatomy/1", "B")]


def test_the_57_subjects_fall_into_17_subcategories_and_four_categories_of_the_known_sizes():
    assert (
        len(SUBCATEGORY) == sum(len(s.split()) for s in SUBCATEGORIES.values()) == 57
        and len(SUBCATEGORIES) == 17
    )
    assert set(SUBCATEGORIES) == set(itertools.chain(*CATEGORIES.values()))
    sizes = {
        c: sum(v == c for v in CATEGORY.values()) for c in CATEGORIES
    }  # published: 18, 13, 12, 14
    assert list(sizes.values()) == [18, 13, 12, 14]
    assert (
        CATEGORY["professional_accounting"]
        == CATEGORY["virology"]
        == "other (business, health, misc.)"
    )
    assert (
        CATEGORY["world_religions"] == "humanities"
        and CATEGORY["computer_security"] == "STEM"
        and CATEGORY["sociology"] == "social sciences"
    )


def test_the_subjects_are_those_of_the_published_files(data_dir):
    assert {
        re.sub("_test.csv$", "", p.name) for p in (data_dir / "mmlu" / "test").iterdir()
    } == set(SUBCATEGORY)


def test_micro_macro_and_categories_agree_with_a_loop():
    rng = np.random.default_rng(3)
    subjects = rng.choice(
        ["astronomy", "college_physics", "virology", "prehistory"], size=101, p=[0.6, 0.2, 0.1, 0.1]
    ).tolist()
    correct = (rng.random(101) < 0.4).tolist()
    got = accuracies(subjects, correct)

    def mean(keep):
        chosen = [c for s, c in zip(subjects, correct, strict=True) if keep(s)]
        return sum(chosen) / len(chosen), len(chosen)

    assert (got["micro"]["score"], got["micro"]["n"]) == mean(lambda s: True)
    for s in set(subjects):
        assert (got["subjects"][s]["score"], got["subjects"][s]["n"]) == mean(lambda t, s=s: t == s)
    assert got["macro"]["score"] == pytest.approx(
        np.mean([mean(lambda t, s=s: t == s)[0] for s in set(subjects)])
    )
    assert (got["categories"]["STEM"]["score"], got["categories"]["STEM"]["n"]) == mean(
        lambda s: s in ("astronomy", "college_physics")
    )
    assert got["categories"]["STEM"]["interval"] == wilson(
        round(got["categories"]["STEM"]["score"] * got["categories"]["STEM"]["n"]),
        got["categories"]["STEM"]["n"],
    )
    assert set(got["categories"]) == {
        "STEM",
        "humanities",
        "other (business, health, misc.)",
    } and set(got["subcategories"]) == {"physics", "history", "health"}
    low, high = got["macro"]["interval"]
    assert (
        low < got["macro"]["score"] < high and high - low > np.diff(got["micro"]["interval"])[0]
    )  # few questions in three subjects


def test_a_subject_that_is_not_of_the_benchmark_is_named():
    with pytest.raises(ValueError, match="'alchemy' is none of MMLU's 57"):
        accuracies(["alchemy"], [1])
