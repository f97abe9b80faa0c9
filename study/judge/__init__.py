"""A strong model's preference between two sets of answers, and what other judgements say."""
