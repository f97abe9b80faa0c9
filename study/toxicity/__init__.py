"""How toxic a model's continuations are (Figure 5 of the paper)."""

URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"  # the Perspective API
