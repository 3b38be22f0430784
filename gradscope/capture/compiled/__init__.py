"""What torch.compile made: taps within its graphs, and what they read."""
