"""What a judge is asked: Vicuna's three prompts, or A, B or a tie; as the body of a request.

Left out: how the reply is read (replies.py), who is asked (asking.py).
"""

import pathlib
import re
from typing import NamedTuple

from study import access, answers

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
FORM = (
    "[Question]\n{question}\n\n[The Start of Assistant 1's Answer]\n{answer_1}\n\n"
    "[The End of Assistant 1's Answer]\n\n"
    "[The Start of Assistant 2's Answer]\n{answer_2}\n\n[The End of Assistant 2's Answer]\n\n"
    "[System]\n{prompt}\n\n"
)
# The three prompts of Vicuna's evaluation, by the category of the question:
# lm-sys/vicuna-blog-eval, eval/table/prompt.jsonl (Apache-2.0); equal to the file, which a test on
# it holds.
VICUNA = {
    "general": (
        "We would like to request your feedback on the performance of two AI assistants in "
        "response to the user question displayed above.\nPlease rate the helpfulness, relevance, "
        "accuracy, level of details of their responses. Each assistant receives an overall score "
        "on a scale of 1 to 10, where a higher score indicates better overall "
        "performance.\nPlease first output a single line containing only two values indicating "
        "the scores for Assistant 1 and 2, respectively. The two scores are separated by a "
        "space. In the subsequent line, please provide a comprehensive explanation of your "
        "evaluation, avoiding any potential bias and ensuring that the order in which the "
        "responses were presented does not affect your judgment."
    ),
    "coding": (
        "Your task is to evaluate the coding abilities of the above two assistants. They have "
        "been asked to implement a program to solve a given problem. Please review their code "
        "submissions, paying close attention to their problem-solving approach, code structure, "
        "readability, and the inclusion of helpful comments.\n\nPlease ensure that the "
        "assistants' submissions:\n\n1. Correctly implement the given problem statement.\n2. "
        "Contain accurate and efficient code.\n3. Include clear and concise comments that "
        "explain the code's logic and functionality.\n4. Adhere to proper coding standards and "
        "best practices.\n\nOnce you have carefully reviewed both submissions, provide detailed "
        "feedback on their strengths and weaknesses, along with any suggestions for improvement. "
        "You should first output a single line containing two scores on the scale of 1-10 (1: no "
        "code/no sense; 10: perfect) for Assistant 1 and 2, respectively. Then give extra "
        "comments starting from the next line."
    ),
    "math": (
        "We would like to request your feedback on the mathematical proficiency of two AI "
        "assistants regarding the given user question displayed above.\nFirst, please solve the "
        "problem independently, without referring to the answers provided by Assistant 1 and "
        "Assistant 2.\nAfterward, please examine the problem-solving process of Assistant 1 and "
        "Assistant 2 step-by-step to ensure their correctness, identifying any incorrect steps "
        "if present. Your evaluation should take into account not only the answer but also the "
        "problem-solving steps.\nFinally, please output a Python tuple containing two numerical "
        "scores for Assistant 1 and Assistant 2, ranging from 1 to 10, respectively. If "
        "applicable, explain the reasons for any variations in their scores and determine which "
        "assistant performed better."
    ),
}
ABTIE = """[Question]
{question}

[The Start of Answer A]
{answer_1}
[The End of Answer A]

[The Start of Answer B]
{answer_2}
[The End of Answer B]

Which answer serves the person who asked the question better? Weigh helpfulness, \
correctness and completeness. Neither the order nor the length of the answers may decide.
Explain in one or two sentences, then end with your verdict alone on a line: [[A]] if A is better, \
[[B]] if B is better, [[tie]] if they are equally good."""


def read_prompts(path: str | pathlib.Path | None) -> dict:
    """{category: (system prompt, template)} of a file like Vicuna's prompt.jsonl.

    The request stands in the template already. None: the three built in.
    """
    if path is None:
        return {c: (SYSTEM, FORM.replace("{prompt}", text)) for c, text in VICUNA.items()}
    prompts = {}
    for place, row in answers.rows_of(path):
        template, category = row.get("prompt_template"), row.get("category")
        whole = isinstance(template, str) and all(
            "{" + n + "}" in template for n in ("question", "answer_1", "answer_2")
        )
        if not whole or not isinstance(category, str):
            raise ValueError(
                f'{path} {place} is no prompt: it needs "category" and "prompt_template" with '
                "{question}, {answer_1} and {answer_2} in it"
            )
        for name, text in (row.get("defaults") or {}).items():
            template = template.replace("{" + name + "}", str(text))
        prompts[category] = (str(row.get("system_prompt") or SYSTEM), template)
    if "general" not in prompts:
        raise ValueError(
            f'{path} has no prompt of category "general", which every question without a category '
            "of its own takes"
        )
    return prompts


class Style(NamedTuple):
    """How a judge is asked. name: "vicuna" (scores, with `prompts` of read_prompts) or "abtie"."""

    name: str
    prompts: dict
    judge_model: str
    temperature: float = 0.2
    max_tokens: int = 1024

    def body(self, first: answers.Answer, second: answers.Answer) -> dict:
        """One request: `first` is shown first.

        Texts are put in at once, so that an answer which holds "{answer_2}" stays as it is.
        """
        system, template = SYSTEM, ABTIE
        if self.name == "vicuna":
            category = first.get("category") or second.get("category")
            system, template = self.prompts.get(category, self.prompts["general"])
        texts = {
            "question": first["instruction"],
            "answer_1": first["output"],
            "answer_2": second["output"],
        }
        content = re.sub(r"\{(question|answer_1|answer_2)\}", lambda m: texts[m[1]], template)
        model = access.Model(self.judge_model, self.temperature, self.max_tokens)
        return model.body(
            [{"role": "system", "content": system}, {"role": "user", "content": content}]
        )
