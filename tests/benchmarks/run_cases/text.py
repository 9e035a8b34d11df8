"""Text: classifiers and language models of transformers, with and without adapters of peft, and of x-transformers."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from .case import CLASSES, Run, case, loader, run

WORDS, LENGTH = 60, 10


class Transformers(pl.LightningModule):
    """A model of transformers, which computes its own loss."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), 1e-3)


def padded(rows: list[dict[str, Any]]) -> Any:
    """As ``DataCollatorWithPadding`` gives it."""
    from transformers import BatchEncoding

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row["input_ids"])] = row["input_ids"]
        mask[place, : len(row["input_ids"])] = 1
    labels = [row["labels"] for row in rows]
    if labels[0].dim():
        told = torch.full_like(ids, -100)
        for place, label in enumerate(labels):
            told[place, : len(label)] = label
    else:
        told = torch.stack(labels)
    return BatchEncoding({"input_ids": ids, "attention_mask": mask, "labels": told})


def sentences(n: int = 48, labels: str = "class") -> list[dict[str, Tensor]]:
    rows = []
    for i in range(n):
        words = torch.randint(1, WORDS, (3 + i % 14,)) if labels == "class" else torch.randint(1, WORDS, (5 + i % 6,))
        rows.append({"input_ids": words, "labels": torch.tensor(i % CLASSES) if labels == "class" else words})
    return rows


def kept_words(module: Any, batch: Any) -> tuple[Tensor, str]:
    """Logits of the words that a causal language model predicts: all but the last place, of labels that count."""
    logits = module.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[0, :-1][batch["labels"][0, 1:] != -100].T, "categorical"


SMALL = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER = {**SMALL, "intermediate_size": 64, "max_position_embeddings": 32, "num_labels": CLASSES}


@case("BertForSequenceClassification", "transformers", "text", "cross entropy, 14 lengths, padded")
def bert() -> Run:
    import transformers as t

    module = Transformers(t.BertForSequenceClassification(t.BertConfig(**ENCODER)))
    data = loader(sentences(), 16, collate_fn=padded)
    return run(module, data, lambda m, b: (m.net(**b).logits[0], "categorical"))


@case("GPT2LMHeadModel", "transformers", "language model", "cross entropy of the words, padded, -100")
def gpt2() -> Run:
    import transformers as t

    sizes = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    module = Transformers(t.GPT2LMHeadModel(t.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)))
    return run(module, loader(sentences(labels="words"), 8, collate_fn=padded), kept_words)


@case("LlamaForCausalLM, LoRA", "peft", "language model", "cross entropy of the words, padded, -100")
def lora() -> Run:
    import transformers as t
    from peft import LoraConfig, get_peft_model

    config = t.LlamaConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, bos_token_id=0, eos_token_id=0)
    adapted = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    module = Transformers(get_peft_model(t.LlamaForCausalLM(config), adapted))
    return run(module, loader(sentences(labels="words"), 8, collate_fn=padded), kept_words)


@case("T5ForConditionalGeneration", "transformers", "translation", "cross entropy of the words")
def t5() -> Run:
    import transformers as t

    sizes = {"vocab_size": WORDS, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    config = t.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    words = torch.randint(2, WORDS, (48, LENGTH))
    rows = [{"input_ids": line, "attention_mask": torch.ones_like(line), "labels": line.flip(0)[:6]} for line in words]
    module = Transformers(t.T5ForConditionalGeneration(config))
    return run(module, loader(rows, 8), lambda m, b: (m.net(**b).logits[0].T, "categorical"))


@case("ViTForImageClassification", "transformers", "image classification", "cross entropy")
def vit() -> Run:
    import transformers as t

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = t.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=CLASSES)
    labels = torch.arange(64) % CLASSES
    pictures = torch.randn(64, 3, 32, 32) + labels[:, None, None, None]
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(pictures, labels, strict=True)]
    module = Transformers(t.ViTForImageClassification(config))
    return run(module, loader(rows), lambda m, b: (m.net(**b).logits[0], "categorical"))


@case("Wav2Vec2ForCTC", "transformers", "speech", "CTC")
def wav2vec2() -> Run:
    import transformers as t

    config = t.Wav2Vec2Config(
        vocab_size=12, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.0, layerdrop=0.0, ctc_loss_reduction="mean",
    )  # fmt: skip
    rows = [{"input_values": torch.randn(800), "labels": torch.randint(1, 12, (6,))} for _ in range(32)]
    return run(Transformers(t.Wav2Vec2ForCTC(config)), loader(rows, 8))


class AutoregressiveWrapped(pl.LightningModule):
    """As x-transformers' README trains a decoder."""

    def __init__(self) -> None:
        super().__init__()
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

        layers = Decoder(dim=32, depth=2, heads=2, rotary_pos_emb=True)
        self.model = AutoregressiveWrapper(TransformerWrapper(num_tokens=WORDS, max_seq_len=32, attn_layers=layers))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.model(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


@case("AutoregressiveWrapper", "x-transformers", "language model", "cross entropy of the words")
def x_transformers() -> Run:
    rows = list(torch.randint(0, WORDS, (48, LENGTH + 1)))
    return run(
        AutoregressiveWrapped(), loader(rows, 8), lambda m, b: (m.model.net(b[:, :-1])[0].T, "categorical"), None
    )
