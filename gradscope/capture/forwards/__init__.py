"""One forward and its backwards: the graph it left, what is to be read there, the gradients."""
