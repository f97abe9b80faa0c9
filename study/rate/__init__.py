"""Blind pairwise rating: a page on which people choose, and what their votes say."""
