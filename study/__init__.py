"""The study around the model: curation, synthesis, style, preference, judge, toxicity, report.

Text in, text out: nothing here imports JAX, and nothing outside imports this package. Each folder
or file is one command, `python -m study.NAME`; shared are rows.py, answers.py and endpoint.py.
"""
