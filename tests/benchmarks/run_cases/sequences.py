"""Speech, and decisions."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Run, case, loader, quiet, run

TOKENS = 8


class Recogniser(pl.LightningModule):
    """torchaudio's Conformer and a linear layer, trained with CTC."""

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.models import Conformer

        self.encoder = Conformer(16, num_heads=2, ffn_dim=32, num_layers=1, depthwise_conv_kernel_size=7)
        self.out = nn.Linear(16, TOKENS)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        frames, lengths, words, word_lengths = batch
        z, lengths = self.encoder(frames, lengths)
        return F.ctc_loss(self.out(z).log_softmax(-1).transpose(0, 1), words, lengths, word_lengths)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def utterances(n: int = 32) -> list[Any]:
    return [(torch.randn(20 + n % 5, 16), torch.randint(1, TOKENS, (4,))) for n in range(n)]


def padded(rows: list[Any]) -> Any:
    frames = nn.utils.rnn.pad_sequence([x for x, _ in rows], batch_first=True)
    lengths = torch.tensor([len(x) for x, _ in rows])
    return frames, lengths, torch.stack([y for _, y in rows]), torch.full((len(rows),), 4)


@case("Conformer", "torchaudio", "speech", "CTC")
def conformer() -> Run:
    return run(Recogniser(), loader(utterances(), 8, collate_fn=padded))


@case("AttentionModel", "rl4co", "reinforcement learning", "REINFORCE on travelling salesmen")
def salesmen() -> Run:
    from rl4co.envs import TSPEnv
    from rl4co.models import AttentionModel
    from rl4co.utils.trainer import RL4COTrainer

    sizes = {"embed_dim": 16, "num_encoder_layers": 1, "num_heads": 2, "feedforward_hidden": 16}
    data = {"batch_size": 16, "train_data_size": 64, "val_data_size": 16, "test_data_size": 16}
    model = AttentionModel(TSPEnv(generator_params={"num_loc": 8}), baseline="mean", policy_kwargs=sizes, **data)

    def fit(callbacks: list[Any]) -> Any:
        RL4COTrainer(**quiet(callbacks)).fit(model)
        return model

    return Run(fit)


class Agent(pl.LightningModule):
    """Deep Q-learning as in Lightning's tutorial, on random transitions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.target_net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        states, actions, rewards, dones, following = batch
        values = self.net(states).gather(1, actions.long().unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            next_values = self.target_net(following).max(1)[0]
            next_values[dones] = 0.0
            next_values = next_values.detach()
        if self.global_step % 4 == 0:
            self.target_net.load_state_dict(self.net.state_dict())
        return nn.MSELoss()(values, next_values * 0.99 + rewards)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), 1e-2)


class Transitions(torch.utils.data.IterableDataset[Any]):
    """A replay buffer: a stream without length."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for _ in range(128):
            states = torch.randn(2, 4, generator=generator)
            draw = torch.rand(3, generator=generator)
            yield states[0], (draw[0] > 0.5).long(), draw[1], draw[2] > 0.9, states[1]


@case("DQN of the tutorial", "lightning", "reinforcement learning", "squared error, stream of data")
def dqn() -> Run:
    data = torch.utils.data.DataLoader(Transitions(), batch_size=16)

    def predicts(module: Any, batch: Any) -> Any:
        return module.net(batch[0]).gather(1, batch[1].unsqueeze(-1)).squeeze(-1), "gaussian"

    def alone() -> Any:
        return (torch.utils.data.default_collate([row]) for row in Transitions())

    return run(Agent(), data, predicts, alone=alone)
