"""The loop: its steps and backwards, what optimizers and loss scalers get and do."""
