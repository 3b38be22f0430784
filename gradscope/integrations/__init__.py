"""gradscope within other tools, one file each; imported only when it is used.

`lightning` and `transformers` hold a callback each for these trainers; `tensorboard`, `wandb` and
`mlflow` are what `Scope.send_to` uses for objects of these trackers.
"""
