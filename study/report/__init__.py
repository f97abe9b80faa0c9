"""The paper's tables and figures from result directories, and what they say."""
