"""Self-supervised and metric learning, as the packages' documentation trains it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from .case import CLASSES, Run, case, images, loader, run

WIDTH = 64


def backbone() -> nn.Module:
    """A small convolutional net, in the place of the tutorials' ResNet-18."""
    layers: list[nn.Module] = []
    for ins, outs in ((3, 16), (16, 32), (32, WIDTH)):
        layers += [nn.Conv2d(ins, outs, 3, 2, 1), nn.BatchNorm2d(outs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


def views(n: int = 48) -> list[Any]:
    """Two noisy views of each picture, a label and a name, as lightly's data sets give them."""
    rows = []
    for place, (x, y) in enumerate(images(n)):
        rows.append(((x + 0.3 * torch.randn_like(x), x + 0.3 * torch.randn_like(x)), y, f"{place}.png"))
    return rows


class SimCLR(pl.LightningModule):
    """https://docs.lightly.ai/self-supervised-learning/examples/simclr.html"""

    def __init__(self) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self.backbone, self.criterion = backbone(), NTXentLoss()
        self.projection_head = SimCLRProjectionHead(WIDTH, WIDTH, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        (x0, x1), _, _ = batch
        return self.criterion(self.forward(x0), self.forward(x1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


def of_first_view(module: Any, batch: Any) -> Any:
    (x0, _), _, _ = batch
    return module(x0), None, "gaussian"


def first_view(module: Any, batch: Any) -> Any:
    return module(batch[0][0])[0], "gaussian"


@case("SimCLR", "lightly", "self-supervised", "NTXentLoss")
def simclr() -> Run:
    return run(SimCLR(), loader(views()), first_view, of_first_view)


class BYOL(pl.LightningModule):
    """https://docs.lightly.ai/self-supervised-learning/examples/byol.html"""

    def __init__(self) -> None:
        super().__init__()
        import copy

        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.backbone = backbone()
        self.projection_head = BYOLProjectionHead(WIDTH, 32, 16)
        self.prediction_head = BYOLPredictionHead(16, 32, 16)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone(x).flatten(start_dim=1)
        return self.prediction_head(self.projection_head(y))

    def forward_momentum(self, x: Tensor) -> Tensor:
        y = self.backbone_momentum(x).flatten(start_dim=1)
        return self.projection_head_momentum(y).detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
        (x0, x1) = batch[0]
        p0, z0 = self.forward(x0), self.forward_momentum(x0)
        p1, z1 = self.forward(x1), self.forward_momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


@case("BYOL", "lightly", "self-supervised", "NegativeCosineSimilarity, momentum encoder")
def byol() -> Run:
    return run(BYOL(), loader(views()), first_view, of_first_view)


class Embedded(pl.LightningModule):
    """A net and a loss of embeddings, as in the examples of pytorch-metric-learning."""

    def __init__(self, loss: Any, miner: Any = None) -> None:
        super().__init__()
        self.net = nn.Sequential(backbone(), nn.Flatten(), nn.Linear(WIDTH, 16))
        self.loss, self.miner = loss, miner

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        embeddings = self(x)
        return self.loss(embeddings, y, *([self.miner(embeddings, y)] if self.miner else []))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


@case("ArcFaceLoss", "pytorch-metric-learning", "metric learning", "cross entropy of angles")
def arcface() -> Run:
    from pytorch_metric_learning.losses import ArcFaceLoss

    def predicts(module: Any, batch: Any) -> Any:  # without the margin, which only the label's logit has
        return module.loss.get_logits(module(batch[0]))[0], "categorical"

    return run(Embedded(ArcFaceLoss(CLASSES, 16)), loader(images()), predicts)


@case("TripletMarginLoss", "pytorch-metric-learning", "metric learning", "triplets, mined in the batch")
def triplet() -> Run:
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    def adapter(module: Any, batch: Any) -> Any:
        x, _ = batch
        return module(x), None, "gaussian"

    predicts = lambda m, b: (m(b[0])[0], "gaussian")  # noqa: E731
    return run(Embedded(TripletMarginLoss(), MultiSimilarityMiner()), loader(images()), predicts, adapter)
