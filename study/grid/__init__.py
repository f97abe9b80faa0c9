"""The grid of runs behind the report: its presets, their steps, and what runs them."""
