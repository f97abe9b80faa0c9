"""What concerns the paper rather than the machine: curation, synthesis, style, preference, judge, toxicity, report.

Text in, text out: no module here imports JAX, and nothing outside imports this package. Each is run as `python -m study.NAME`.
"""
