"""A teacher's answers to given prompts, as dialogues to train on or to stand beside a model's.

    python -m study.synthesize answers --prompts FILE --teacher URL --teacher-model NAME --out DIR

Left out: choosing prompts (study.curate leakage), answers in the form that is compared
(study.answers ask).
"""

import pathlib

from study import access, questions, rows


def collect(
    paths: list,
    asking: questions.Asking,
    teacher: access.Model,
    reach: access.Access,
    out: pathlib.Path,
) -> None:
    """The command: ask every prompt, write the dialogues and the report."""
    prompts = questions.read(paths)
    with reach.endpoint(out / "log.jsonl") as endpoint:
        replies, counts = questions.ask(prompts, asking, teacher, endpoint)
    dialogues = []
    for reply in replies:
        name = reply.question.id if asking.samples == 1 else f"{reply.question.id}.{reply.k}"
        text = reply.answer["text"]
        dialogues.append(rows.dialogue(name, reply.question.text, text, teacher.name))
    settings = {"teacher_model": teacher.name, **questions.settings_of(paths, asking, teacher)}
    access.write(out / "dialogues.jsonl", dialogues, settings, counts, endpoint)
