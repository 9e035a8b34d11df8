"""Images: classification with mixed samples, segmentation, detection, remote sensing, medical images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from .case import CLASSES, Predicted, Run, case, images, loader, run


class Images(pl.LightningModule):
    """A net and a loss, in the training step that every tutorial has."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Mixed(Images):
    """Samples mixed in the training step, as in timm's scripts."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], mix: Any) -> None:
        super().__init__(net, loss)
        self.mix = mix

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.mix(*batch)
        return self.loss(self(x), y)


def mobilenet() -> nn.Module:
    import timm

    return timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=CLASSES)


def logits(module: Any, batch: Any) -> Predicted:
    return module(batch[0])[0], "categorical"


def own_labels(module: Any, batch: Any) -> Any:
    """What a module with mixed samples predicts of samples that are not."""
    x, y = batch
    return module(x), y, "categorical"


@case("mobilenetv3_small_050", "timm", "image classification", "cross entropy with label smoothing")
def smooth() -> Run:
    from timm.loss import LabelSmoothingCrossEntropy

    return run(Images(mobilenet(), LabelSmoothingCrossEntropy()), loader(images()), logits, own_labels)


@case("mobilenetv3_small_050, Mixup", "timm", "image classification", "SoftTargetCrossEntropy")
def mixup() -> Run:
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy

    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    return run(Mixed(mobilenet(), SoftTargetCrossEntropy(), mix), loader(images()), logits, own_labels)


@case("shufflenet_v2_x0_5, v2.MixUp", "torchvision", "image classification", "cross entropy, mixed in the step")
def mixup_v2() -> Run:
    from torchvision.models import shufflenet_v2_x0_5
    from torchvision.transforms import v2

    net = shufflenet_v2_x0_5(weights=None, num_classes=CLASSES)
    mix = v2.MixUp(num_classes=CLASSES)
    return run(Mixed(net, nn.CrossEntropyLoss(), mix), loader(images()), logits, own_labels, max_epochs=1)


def masks(n: int = 12, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Bright regions of noise."""
    regions = (torch.nn.functional.avg_pool2d(torch.randn(n, 1, size, size), 9, 1, 4) > 0).float()
    return list(zip(torch.randn(n, 3, size, size) + regions, regions, strict=True))


def pixels(module: Any, batch: Any) -> Predicted:
    return module(batch[0])[0], "bernoulli"


def mask_of(module: Any, batch: Any) -> Any:
    x, y = batch
    return module(x), y, "bernoulli"


def unet(classes: int = 1) -> nn.Module:
    import segmentation_models_pytorch as smp

    sizes = {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}
    return smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None, classes=classes, **sizes)


@case("Unet, BCE", "segmentation-models-pytorch", "segmentation", "binary cross entropy")
def unet_bce() -> Run:
    return run(Images(unet(), nn.BCEWithLogitsLoss()), loader(masks(), 4), pixels)


@case("Unet, Dice", "segmentation-models-pytorch", "segmentation", "Dice")
def unet_dice() -> Run:
    import segmentation_models_pytorch as smp

    return run(Images(unet(), smp.losses.DiceLoss("binary")), loader(masks(), 4), pixels, mask_of)


@case("Unet, Dice and BCE", "segmentation-models-pytorch", "segmentation", "Dice + binary cross entropy")
def unet_both() -> Run:
    import segmentation_models_pytorch as smp

    dice, bce = smp.losses.DiceLoss("binary"), smp.losses.SoftBCEWithLogitsLoss()
    return run(Images(unet(), lambda z, y: dice(z, y) + bce(z, y)), loader(masks(), 4), pixels)


@case("Unet, Focal", "segmentation-models-pytorch", "segmentation", "focal")
def unet_focal() -> Run:
    import segmentation_models_pytorch as smp

    return run(Images(unet(), smp.losses.FocalLoss("binary")), loader(masks(), 4), pixels, mask_of)


class Detector(pl.LightningModule):
    """As torchvision's detection tutorial trains it."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as faster_rcnn

        sizes = {"min_size": 64, "max_size": 64}
        self.net = faster_rcnn(weights=None, weights_backbone=None, num_classes=3, **sizes)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pictures, targets = batch
        return sum(self.net(list(pictures), list(targets)).values())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


@case("Faster R-CNN", "torchvision", "detection", "cross entropies, smooth L1s")
def faster_rcnn() -> Run:
    boxes = torch.tensor([[5.0, 5.0, 40.0, 40.0], [10.0, 20.0, 60.0, 60.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    rows = [(torch.rand(3, 64, 64), target) for _ in range(16)]
    return run(Detector(), loader(rows, 4, collate_fn=lambda rows: tuple(zip(*rows, strict=True))), max_epochs=1)


@case("ClassificationTask", "torchgeo", "remote sensing", "cross entropy")
def torchgeo_classification() -> Run:
    from torchgeo.trainers import ClassificationTask

    sizes = {"in_channels": 3, "num_classes": CLASSES}
    module = ClassificationTask(model="mobilenetv3_small_050", weights=None, loss="ce", **sizes)
    rows = [{"image": x, "label": y} for x, y in images(24)]
    return run(module, loader(rows), lambda m, b: (m(b["image"])[0], "categorical"), validated=True)


@case("SemanticSegmentationTask", "torchgeo", "remote sensing", "cross entropy of the pixels")
def torchgeo_segmentation() -> Run:
    from torchgeo.trainers import SemanticSegmentationTask

    sizes = {"in_channels": 3, "num_classes": 2}
    module = SemanticSegmentationTask(model="fcn", weights=None, loss="ce", num_filters=8, **sizes)
    rows = [{"image": x, "mask": y[0].long()} for x, y in masks()]
    return run(module, loader(rows, 8), lambda m, b: (m(b["image"])[0], "categorical"), validated=True)


@case("BasicUNet", "monai", "medical images", "DiceCELoss")
def monai_unet() -> Run:
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    net = BasicUNet(spatial_dims=2, in_channels=3, out_channels=2, features=(8, 8, 16, 16, 16, 8))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    return run(Images(net, loss), loader(masks(size=32), 4))


@case("FocalLoss", "kornia", "image classification", "focal_loss")
def kornia_focal() -> Run:
    from kornia.losses import FocalLoss

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    return run(Images(net, FocalLoss(alpha=None, gamma=2.0, reduction="mean")), loader(images()), None, own_labels)
