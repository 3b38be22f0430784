"""Train a tiny GPT-2 on random text, and see what its residual stream carries.

    python examples/gpt2_residual_stream.py

Hugging Face's GPT-2 from a configuration; nothing is downloaded. Each block adds to the stream
twice, after attention and after the feed-forward net. Random text has nothing to teach but how
often each letter comes, so look at the gradients and not at the loss.
Writes a run under runs/ and opens the dashboard: its flow map shows the same as the tables.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

import gradscope
import running

try:
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import ModelOutput
except ImportError:
    raise SystemExit(
        "this example needs transformers: pip install 'gradscope-torch[examples]'"
    ) from None

LETTERS = 27
CONFIG = GPT2Config(
    vocab_size=LETTERS,
    n_positions=32,
    n_embd=48,
    n_layer=8,
    n_head=4,
    bos_token_id=None,
    eos_token_id=None,
)

Batch = dict[str, torch.Tensor]


def main() -> None:
    """Train, and print the two additions of each block and the lengths of the gradient's paths."""
    args = running.arguments("Train a tiny GPT-2; show its residual stream.", 60)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(CONFIG).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    folder = running.free_folder(args.runs, "gpt2")
    print_paths(model, random_text(args.device), "before training")
    with gradscope.watch(model, run=folder) as scope:
        for _ in tqdm(range(args.steps), folder.name):
            optimizer.zero_grad()
            batch = random_text(args.device)
            loss = loss_of(model(**batch), batch)
            loss.backward()
            optimizer.step()
            scope.log(train_loss=loss)
    print_stream(gradscope.load(folder))
    print_paths(model, random_text(args.device), "after training")
    running.open_dashboard(args)


def random_text(device: str, texts: int = 16, length: int = 32) -> Batch:
    """Return letters drawn at random, the first ones of the alphabet more often."""
    rank = torch.arange(1, LETTERS + 1)
    text = torch.multinomial(1 / rank, texts * length, replacement=True)
    text = text.view(texts, length).to(device)
    return {"input_ids": text}


def loss_of(output: ModelOutput, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of each letter given those before it."""
    guesses, letters = output.logits[:, :-1], batch["input_ids"][:, 1:]
    return torch.nn.functional.cross_entropy(guesses.flatten(0, 1), letters.flatten())


def print_stream(run: gradscope.Run) -> None:
    """Print, from the input to the output, how the gradient divides at each addition."""
    readings = run.shortcut_readings
    first = readings[readings["step"] == 0].set_index("shortcut")
    last = readings[readings["step"] == readings["step"].max()].set_index("shortcut")
    print("\nShare of the gradient's energy that stays on the stream, and what is added to it\n")
    print(f"{'depth':>6}  {'branch':24}{'energy share':>24}{'|F(x)|/|S(x)|':>24}")
    print(f"{'':32}{'first step':>12}{'last step':>12}{'first step':>12}{'last step':>12}")
    for row in run.shortcuts.itertuples():
        a, b = first.loc[row.shortcut], last.loc[row.shortcut]
        print(
            f"{row.position:6.2f}  {row.branch:24}{a.energy_share:12.3f}{b.energy_share:12.3f}"
            f"{a.branch_ratio:12.3f}{b.branch_ratio:12.3f}"
        )


def print_paths(model: torch.nn.Module, batch: Batch, when: str) -> None:
    """Print how much of the gradient at the first block comes through how many branches."""
    frame = gradscope.path_lengths(model, loss_of, batch)
    print(f"\nThe gradient at the first block by the branches that it passed, {when}\n")
    print(f"{'branches':>8}{'paths':>8}{'norm':>11}{'share':>9}")
    for row in frame[frame["share"].abs() > 0.001].itertuples():
        print(f"{row.branches:8}{row.paths:8}{row.norm:11.2e}{row.share:9.1%}")
    print("Norms do not add up; shares, projections on the whole gradient, do.")


if __name__ == "__main__":
    main()
