"""Unmodified models of other people: who computes their per-sample gradients, how exactly, and at what cost.

    pip install -e ".[test]" torchvision timm transformers
    python tests/benchmarks/real_models.py                  # writes docs/models.md
    python tests/benchmarks/real_models.py resnet18 gpt2    # only prints those whose names begin so

Random weights, small inputs, nothing is downloaded. One CPU thread.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from lightning_info.gradients import NotCovered, choose_engine
from lightning_info.gradients.batches import take
from lightning_info.gradients.contract import trainable
from lightning_info.gradients.plan import coverage
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

CLASSES, CHECKED, TIMED, REPEATS = 10, 2, 8, 3
WORDS, LENGTH = 100, 16

INTRO = """# Models nobody here wrote

Written by `python tests/benchmarks/real_models.py` ({versions}): classifiers and language models of torchvision, timm,
transformers and Lightning's demos, unmodified, with random weights, BatchNorm statistics warmed up, in eval mode.

- *engine*: what `engine="auto"` takes, see [fisher.md](fisher.md#per-sample-gradients).
- *coverage*: share of the trainable elements whose per-sample gradient norm is computed exactly.
- *error*: largest relative difference, over all parameters and {checked} samples, from one plain backward pass for each
  sample alone, in float64; parameters with less than 1e-9 of a sample's norm count by that.
- *cost*: squared gradient norms of {timed} samples, as a ratio to a plain forward and backward pass of the same samples
  (medians of {repeats}, interleaved, one thread, float32). A batch this small shows the engines' fixed costs.

| model | from | kind | parameters | engine | coverage | error | cost |
|---|---|---|---|---|---|---|---|
"""


class Images(pl.LightningModule):
    """A classifier of images."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)


class Transformers(pl.LightningModule):
    """A model of transformers, which computes its own loss."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss


class Recurrent(nn.Module):
    """The last state of a recurrent layer, and a linear one."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def images(size: int = 64, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(TIMED, channels, size, size), torch.randint(0, CLASSES, (TIMED,))


def sentences(labels: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    words = torch.randint(1, WORDS, (TIMED, LENGTH))
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": labels(words)}


def classes(words: torch.Tensor) -> torch.Tensor:
    return torch.randint(0, CLASSES, (len(words),))


def same(words: torch.Tensor) -> torch.Tensor:
    return words


def torchvision_models() -> Iterator[tuple[str, str, str, Callable[[], tuple[pl.LightningModule, Any]]]]:
    from torchvision import models
    from torchvision.models.vision_transformer import VisionTransformer

    kinds = {
        "resnet18": "residual",
        "wide_resnet50_2": "residual, wide",
        "vgg11_bn": "convolutional",
        "squeezenet1_1": "convolutional, no norm",
        "densenet121": "dense connections",
        "mobilenet_v3_small": "depthwise",
        "efficientnet_b0": "depthwise, gated",
        "mnasnet0_5": "depthwise",
        "shufflenet_v2_x0_5": "depthwise, shuffled",
        "regnet_y_400mf": "grouped, gated",
        "resnext50_32x4d": "grouped",
        "convnext_tiny": "depthwise, LayerNorm",
        "swin_t": "windowed attention",
        "swin_v2_t": "windowed attention",
    }
    for name, kind in kinds.items():
        yield (
            name,
            "torchvision",
            kind,
            lambda name=name: (
                Images(models.get_model(name, weights=None, num_classes=CLASSES)),
                images(),
            ),
        )
    vit = {"image_size": 64, "patch_size": 16, "num_layers": 4, "num_heads": 4, "hidden_dim": 128, "mlp_dim": 256}
    yield (
        "vit, 4 layers",
        "torchvision",
        "attention",
        lambda: (
            Images(VisionTransformer(**vit, num_classes=CLASSES)),
            images(),
        ),
    )


def timm_models():
    import timm

    kinds = {
        "vit_tiny_patch16_224": ("attention", {"img_size": 64}),
        "deit3_small_patch16_224": ("attention, layer scale", {"img_size": 64}),
        "mixer_s32_224": ("MLP over tokens", {"img_size": 64}),
        "nf_resnet26": ("norm-free, scaled weights", {}),
        "nf_regnet_b0": ("norm-free, depthwise", {}),
        "mobilevit_xxs": ("convolution and attention", {}),
        "poolformerv2_s12": ("pooling as attention", {}),
        "pvt_v2_b0": ("attention, reduced", {}),
        "coatnet_nano_rw_224": ("convolution and attention", {"img_size": 64}),
    }
    for name, (kind, options) in kinds.items():
        yield (
            name,
            "timm",
            kind,
            lambda name=name, options=options: (
                Images(timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)),
                images(),
            ),
        )


def transformers_models():
    import transformers as t

    small = {"vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    encoder = {**small, "intermediate_size": 128, "max_position_embeddings": 64, "num_labels": CLASSES}
    yield (
        "BERT",
        "transformers",
        "attention",
        lambda: (
            Transformers(t.BertForSequenceClassification(t.BertConfig(**encoder))),
            sentences(classes),
        ),
    )
    yield (
        "RoBERTa",
        "transformers",
        "attention",
        lambda: (
            Transformers(t.RobertaForSequenceClassification(t.RobertaConfig(**encoder))),
            sentences(classes),
        ),
    )
    gpt = {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    yield (
        "gpt2, language model",
        "transformers",
        "causal attention, tied",
        lambda: (
            Transformers(t.GPT2LMHeadModel(t.GPT2Config(**gpt, bos_token_id=0, eos_token_id=0))),
            sentences(same),
        ),
    )
    llama = {**small, "intermediate_size": 128, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
    yield (
        "Llama, language model",
        "transformers",
        "causal attention, RMSNorm",
        lambda: (
            Transformers(t.LlamaForCausalLM(t.LlamaConfig(**llama))),
            sentences(same),
        ),
    )
    t5 = {"vocab_size": WORDS, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    yield (
        "T5, translation",
        "transformers",
        "encoder and decoder, tied",
        lambda: (
            Transformers(t.T5ForConditionalGeneration(t.T5Config(**t5, decoder_start_token_id=0))),
            sentences(same),
        ),
    )


def lightning_models():
    from lightning.pytorch.demos import LightningTransformer
    from lightning.pytorch.demos.boring_classes import BoringModel

    yield "BoringModel", "Lightning", "linear, squared error", lambda: (BoringModel(), torch.randn(TIMED, 32))
    words = torch.randint(0, WORDS, (2, TIMED, LENGTH))
    yield (
        "LightningTransformer",
        "Lightning",
        "encoder and decoder",
        lambda: (
            LightningTransformer(vocab_size=WORDS),
            tuple(words),
        ),
    )


def recurrent_models():
    sequence = (torch.randn(TIMED, LENGTH, 12), torch.randint(0, CLASSES, (TIMED,)))
    for name, kind, layer in (
        ("LSTM, 2 layers", "recurrent", lambda: nn.LSTM(12, 32, 2, batch_first=True)),
        ("GRU, both directions", "recurrent", lambda: nn.GRU(12, 32, batch_first=True, bidirectional=True)),
    ):

        def make(layer=layer):
            module = Images(Recurrent(layer()))
            module(sequence[0])
            return module, sequence

        yield name, "torch.nn", kind, make


def warm(module: pl.LightningModule, batch: Any) -> None:
    """Statistics of BatchNorm, and scales of residual branches, that are not those of a fresh module."""
    module.train()
    with torch.no_grad():
        for _ in range(10):
            module.training_step(batch, 0)
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1 or "gamma" in name or "layer_scale" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    module.eval()


def each_alone(module: nn.Module, predictor: Predictor, batch: Any, u: torch.Tensor) -> dict[str, torch.Tensor]:
    """The truth: one sample, one backward pass."""
    parameters, rows = trainable(module), []
    for n in range(len(u)):
        outputs = predictor.outputs(module, take(batch, slice(n, n + 1)))
        gradients = torch.autograd.grad(outputs, list(parameters.values()), u[n : n + 1], allow_unused=True)
        rows.append(torch.stack([torch.zeros(()).double() if g is None else g.square().sum() for g in gradients]))
    return dict(zip(parameters, torch.stack(rows, 1), strict=True))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(name: str, source: str, kind: str, make: Callable[[], tuple[pl.LightningModule, Any]]) -> str:
    torch.manual_seed(0)
    module, batch = make()
    warm(module, batch)
    predictor = Predictor(StandInTrainer(types.SimpleNamespace(optimizers=[0], lr_scheduler_configs=[])))
    replica = replicate(module, private=True)
    head = f"| {name} | {source} | {kind} | {sum(p.numel() for p in trainable(module).values()):,} |"
    try:
        plan = choose_engine(replica, predictor.outputs, batch)
    except NotCovered as error:
        return f"{head} refused: {error} | | | |"

    exact, few = copy.deepcopy(replica).double(), take(batch, slice(0, CHECKED))
    few = torch.utils._pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, few)
    u = torch.randn(predictor.outputs(exact, few).shape, dtype=torch.float64)
    found, truth = plan.squared_norms(exact, predictor.outputs, few, [u]), each_alone(exact, predictor, few, u)
    total = sum(truth.values())
    error = max(float(((found[p] - t).abs() / torch.maximum(t, 1e-9 * total)).max()) for p, t in truth.items())

    u = torch.randn(predictor.outputs(replica, batch).shape)
    replica.zero_grad()

    def plain() -> None:
        outputs = predictor.outputs(replica, batch)
        torch.autograd.grad(outputs, list(trainable(replica).values()), u, allow_unused=True)

    times: list[tuple[float, float]] = []
    for _ in range(REPEATS + 1):
        norms = seconds(lambda: plan.squared_norms(replica, predictor.outputs, batch, [u]))
        times.append((norms, seconds(plain)))
    norms, base = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return f"{head} `{plan.engine}` | {coverage(replica, found):.1%} | {error:.0e} | {norms / base:.2f} |"


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    versions, rows = [f"torch {torch.__version__}"], []
    wanted = tuple(sys.argv[1:])
    for package, models in {
        "torchvision": torchvision_models,
        "timm": timm_models,
        "transformers": transformers_models,
        "lightning": lightning_models,
        "torch": recurrent_models,
    }.items():
        try:
            version = __import__(package).__version__
        except ImportError:
            print(f"{package} is not installed; its models are left out")
            continue
        if package != "torch":
            versions.append(f"{package} {version}")
        for name, source, kind, make in models():
            if not wanted or name.startswith(wanted):
                rows.append(row(name, source, kind, make))
                print(rows[-1], flush=True)
    if not wanted:
        intro = INTRO.format(versions=", ".join(versions), checked=CHECKED, timed=TIMED, repeats=REPEATS)
        (Path(__file__).parents[2] / "docs" / "models.md").write_text(intro + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
