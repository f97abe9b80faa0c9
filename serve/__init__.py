"""Models behind OpenAI's protocol, and a page to talk to them: `python -m serve`."""
