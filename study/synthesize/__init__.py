"""NQ-synthetic from ten seeds, written by a teacher; and a teacher's answers to given prompts."""
