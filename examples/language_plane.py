"""What each layer of a small transformer knows of the next character, while it learns to write like Python's own help.

    python examples/language_plane.py                # a minute of one core
    python examples/language_plane.py --steps 3000   # five; deeper layers rise further

The text is the documentation that comes with every Python (``pydoc_data.topics``), so nothing is downloaded. A causal
transformer of three blocks predicts the next character. ``InfoPlaneCallback`` measures the stream behind the embedding
and behind each block, and the logits: upwards what cross-fitted linear decoders tell of the next character at single
positions, a lower bound that is at most H(Y) (the 15 most frequent characters stay apart, all others are one); to the
right what bins leave of the sequence in the mean over its positions. ``FisherTraceCallback`` adds tr F.

What to look for in ``info_plane_decoder/I_TY``: at the start all layers hold the same little; while the loss falls,
each block adds to the one before, and the embedding, which sees one character, stays behind. H(Y) less the loss is a
mark for the logits, as the loss is that of all characters apart. In the table at the end bins find no compression, or
cannot tell.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from pydoc_data import topics

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback, InfoPlaneCallback

BATCH = 32


def sequences(length: int) -> tuple[TensorDataset, list[str]]:
    """Return all of the text in sequences ``(N, length + 1)`` that overlap by one character, and the characters."""
    text = "\n\n".join(topics.topics[key] for key in sorted(topics.topics))
    characters = sorted(set(text))
    numbers = {character: number for number, character in enumerate(characters)}
    codes = torch.tensor([numbers[character] for character in text])
    return TensorDataset(codes.unfold(0, length + 1, length)), characters


class Block(nn.Module):
    """Causal attention and two layers, each added to the stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rise, self.act, self.fall = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.mix(self.norm1(x)).chunk(3, 2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.fall(self.act(self.rise(self.norm2(x))))


class Embedding(nn.Module):
    """Characters and their places."""

    def __init__(self, characters: int, length: int, width: int):
        super().__init__()
        self.character, self.place = nn.Embedding(characters, width), nn.Embedding(length, width)

    def forward(self, codes: Tensor) -> Tensor:
        return self.character(codes) + self.place(torch.arange(codes.shape[1], device=codes.device))


class Transformer(pl.LightningModule):
    """A causal transformer that predicts the next character."""

    def __init__(self, characters: int, length: int, width: int, blocks: int):
        super().__init__()
        self.embedding = Embedding(characters, length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(codes))))

    def training_step(self, batch, batch_idx):
        (codes,) = batch
        loss = F.cross_entropy(self(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 2e-3)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=48, help="characters of a sequence")
    parser.add_argument("--width", type=int, default=64, help="of the stream, a multiple of 4")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1024, help="sequences that are measured")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the event files and the figure")
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    pl.seed_everything(arguments.seed, verbose=False)
    text, characters = sequences(arguments.length)
    model = Transformer(len(characters), arguments.length, arguments.width, arguments.blocks)
    layers = ["embedding", *(f"blocks.{number}" for number in range(arguments.blocks)), "head"]
    often = {"every_n_train_steps": max(1, arguments.steps // 12), "seed": arguments.seed}
    plane = InfoPlaneCallback(layers=layers, num_samples=arguments.samples, **often)
    fisher = FisherTraceCallback(**often)
    logger = TensorBoardLogger(arguments.out, name="language_plane")
    trainer = pl.Trainer(
        max_steps=arguments.steps,
        accelerator="auto",
        devices=1,
        logger=logger,
        callbacks=[fisher, plane],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(text, BATCH, shuffle=True, drop_last=True))

    print(f"\nLoss {trainer.callback_metrics['train_loss'].item() / math.log(2):.2f} bits a character.")
    print("I(T;Y) of the next character, lower bounds in bits, at the first and the last point:")
    for layer in layers:
        curve = plane.history[f"info_plane_decoder/I_TY/{layer}"]
        error = plane.history[f"info_plane_decoder_stderr/I_TY/{layer}"][-1][1]
        print(f"  {layer:10} {curve[0][1]:5.2f} -> {curve[-1][1]:5.2f} ± {error:.2f}")
    picture = Path(logger.log_dir) / "plane.png"
    plane.drawings()["info_plane/plane"]().savefig(picture, dpi=110)
    print(f"Figure: {picture}\nLook at it:  tensorboard --logdir {arguments.out}")


if __name__ == "__main__":
    main()
