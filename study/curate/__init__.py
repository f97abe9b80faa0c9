"""The imitation data: a mix from raw downloads, how varied it is, which prompts it gives away."""

# Koala's list, from its preprocessing: a dialogue that names one of them is about its own teacher.
MENTIONS = ("openai", "chatgpt", "gpt-3", "chadgpt", "gpt3", "chat-gpt", "open-ai", "open ai")
SMALL = 4 << 20  # bytes of dialogues below which starting workers takes longer than it saves
