"""The model as it is watched: its modules by number, and the hooks on them."""
