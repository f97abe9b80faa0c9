"""An invented world: what the small study is made of, and two simulated readers in it."""
