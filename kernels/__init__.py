"""The arithmetic as pure functions; nothing here knows configs or files."""
