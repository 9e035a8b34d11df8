"""Generative models: diffusion, autoencoders, adversarial nets, flows, single cells."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Run, case, images, loader, quiet, run


class Diffusion(pl.LightningModule):
    """The training loop of diffusers' tutorial on unconditional images."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import DDPMScheduler, UNet2DModel

        blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
        sizes = {"block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 4}
        self.model = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **blocks, **sizes)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        clean = batch["images"]
        noise = torch.randn(clean.shape, device=clean.device)
        steps = torch.randint(0, 1000, (clean.shape[0],), device=clean.device, dtype=torch.int64)
        noisy = self.scheduler.add_noise(clean, noise, steps)
        predicted = self.model(noisy, steps, return_dict=False)[0]
        return F.mse_loss(predicted, noise)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-4)


@case("UNet2DModel, DDPM", "diffusers", "diffusion", "squared error of the noise")
def ddpm() -> Run:
    return run(Diffusion(), loader([{"images": x} for x, _ in images(32, 8)], 8))


class Autoencoding(pl.LightningModule):
    """A variational autoencoder of diffusers in its documented loss: squared error and KL."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        posterior = self.vae.encode(x).latent_dist
        return F.mse_loss(self.vae.decode(posterior.sample()).sample, x) + 1e-3 * posterior.kl().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


@case("AutoencoderKL", "diffusers", "variational autoencoder", "squared error + KL, sampled latents")
def vae() -> Run:
    return run(Autoencoding(), loader(images(32, 8), 8))


class Adversarial(pl.LightningModule):
    """Lightning's tutorial on GANs: manual optimisation, two optimisers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))
        self.discriminator = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Sigmoid())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(len(x), 8).type_as(x)
        self.toggle_optimizer(optimizer_g)
        valid = torch.ones(len(x), 1).type_as(x)
        g_loss = F.binary_cross_entropy(self.discriminator(self.generator(z)), valid)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)
        self.toggle_optimizer(optimizer_d)
        real_loss = F.binary_cross_entropy(self.discriminator(x), valid)
        fake_loss = F.binary_cross_entropy(self.discriminator(self.generator(z).detach()), torch.zeros_like(valid))
        d_loss = (real_loss + fake_loss) / 2
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), 2e-4, betas=(0.5, 0.999)) for part in parts], []


@case("GAN of the tutorial", "lightning", "adversarial", "binary cross entropies, manual optimisation")
def gan() -> Run:
    def adapter(module: Any, batch: Any) -> Any:
        x, _ = batch
        return module.discriminator(x).logit(), torch.ones(len(x), 1, device=x.device), "bernoulli"

    rows = [(x.flatten(), y) for x, y in images(64, 8, 1)]
    return run(
        Adversarial(), loader(rows), lambda m, b: (m.discriminator(b[0]).logit()[0], "bernoulli"), adapter, max_epochs=4
    )


class Flow(pl.LightningModule):
    """Maximum likelihood, as in zuko's README."""

    def __init__(self) -> None:
        super().__init__()
        from zuko.flows import NSF

        self.flow = NSF(features=3, context=5, transforms=2, hidden_features=(16, 16))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, c = batch
        return -self.flow(c).log_prob(x).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


@case("NSF", "zuko", "normalising flow", "log_prob under a transform with weights")
def flow() -> Run:
    context = torch.randn(64, 5)
    rows = list(zip(context[:, :3] + 0.1 * torch.randn(64, 3), context, strict=True))
    return run(Flow(), loader(rows))


class Quantised(pl.LightningModule):
    """An autoencoder with a code book, as in vector-quantize-pytorch's examples."""

    def __init__(self) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.encoder, self.decoder = nn.Conv2d(3, 8, 4, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)
        self.quantise = VectorQuantize(dim=8, codebook_size=16, accept_image_fmap=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        z, _, commitment = self.quantise(self.encoder(x))
        return F.l1_loss(self.decoder(z), x) + 10 * commitment.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 3e-4)


@case("VectorQuantize", "vector-quantize-pytorch", "quantised autoencoder", "L1 + commitment")
def quantised() -> Run:
    return run(Quantised(), loader(images(32, 8), 8))


@case("SCVI", "scvi-tools", "single cells", "zero-inflated negative binomial + KL")
def scvi() -> Run:
    import anndata
    from scvi.model import SCVI

    counts = torch.poisson(torch.full((96, 20), 2.0)).numpy()
    data = anndata.AnnData(counts)
    SCVI.setup_anndata(data)
    model = SCVI(data, n_hidden=16, n_latent=4)

    def fit(callbacks: list[Any]) -> Any:
        arguments = quiet(callbacks, batch_size=32, train_size=1.0, shuffle_set_split=False)
        for name in ("enable_checkpointing", "max_epochs"):
            arguments.pop(name)
        model.train(max_epochs=2, **arguments)
        return model.module

    return Run(fit)
