"""From images to SDFT's raw global and part features, above a convolutional map or inside a vision transformer."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from itertools import zip_longest

import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.net import Embedder
from core.backbones.vit import VisionTransformer, branch_scales
from core.errors import UserError
from core.precision import at_least_float32
from methods.sdft.fusion import Sequences, Tokens, enter, fuse, stripe_features


class Trunk(nn.Module, ABC):
    """F fusion blocks of S stripes over an embedder, which the method holds and passes in.

    parts: whether anybody reads the part features. If not, the last block has no part path: no parameter is left
    without a gradient.
    """

    def __init__(self, blocks: int, stripes: int, parts: bool) -> None:
        super().__init__()
        self.blocks, self.stripes, self.parts = blocks, stripes, parts
        self.part_blocks = nn.ModuleList()  # B_p of each fusion block that has one
        self.part_count = blocks if parts else max(0, blocks - 1)

    def forward(self, embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw global features (B, d) and, if they are read, raw parts (B, S, d): what the necks are for."""
        if self.blocks == 0 and not self.parts:
            return embedder.map_and_pool(images)[1], None  # the baseline, to the last bit
        whole, patches, rows, whole_paths = self.begin(embedder, images)
        tokens = enter(whole, patches, self.stripes)
        for whole_path, part_path in zip_longest(whole_paths, self.part_paths()):
            tokens = fuse(whole_path, part_path, tokens, rows)
        tokens = self.end(embedder, tokens)
        parts = at_least_float32(stripe_features(tokens, rows)) if self.parts else None
        return at_least_float32(tokens.whole), parts

    @abstractmethod
    def begin(self, embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor, int, list[Sequences]]:
        """Class token (B, d), patches (B, N, d), rows of their grid, and B_g of each fusion block to come."""

    def part_paths(self) -> list[Sequences]:
        """B_p of each fusion block that has one."""
        return list(self.part_blocks)

    def end(self, embedder: Embedder, tokens: Tokens) -> Tokens:
        """The final norms, of which a convolutional network has none."""
        return tokens

    def adopt(self, embedder: Embedder) -> None:
        """Copy what starts as a copy from an embedder whose weights were just loaded."""


class MapTrunk(Trunk):
    """Fusion blocks of their own on the last feature map; the class token is the pooled map."""

    def __init__(self, embedder: Embedder, blocks: int, stripes: int, parts: bool) -> None:
        super().__init__(blocks, stripes, parts)
        self.whole_blocks = nn.ModuleList(MapBlock(embedder.dim) for _ in range(blocks))
        self.part_blocks.extend(copy.deepcopy(block) for block in self.whole_blocks[: self.part_count])

    def begin(self, embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor, int, list[Sequences]]:
        feature_map, pooled = embedder.map_and_pool(images)
        return pooled, feature_map.flatten(2).transpose(1, 2), feature_map.shape[2], list(self.whole_blocks)


class TokenTrunk(Trunk):
    """The last F blocks of a vision transformer become fusion blocks.

    B_g is the pretrained block in its place; B_p and the parts' final norm are copies of the pretrained ones, taken
    once the weights are loaded. B_p drops paths at its depth's rate, for each stripe by itself.
    """

    def __init__(self, embedder: Embedder, blocks: int, stripes: int, parts: bool) -> None:
        super().__init__(blocks, stripes, parts)
        vit = transformer(embedder)
        self.first = len(vit.blocks) - blocks
        if self.first < 0:
            raise UserError(f"settings.blocks {blocks} exceeds the {len(vit.blocks)} blocks of the transformer")
        self.rates = vit.drop_path[self.first : self.first + self.part_count]
        self.part_blocks.extend(copy.deepcopy(block) for block in self._originals(vit))
        self.part_norm = copy.deepcopy(vit.norm) if parts else None

    def begin(self, embedder: Embedder, images: Tensor) -> tuple[Tensor, Tensor, int, list[Sequences]]:
        vit = transformer(embedder)
        tokens, (rows, _) = vit.tokens(images, blocks=self.first)
        last = zip(vit.blocks[self.first :], vit.drop_path[self.first :], strict=True)
        return tokens[:, 0], tokens[:, 1:], rows, [self._path(block, rate) for block, rate in last]

    def part_paths(self) -> list[Sequences]:
        return [self._path(block, rate) for block, rate in zip(self.part_blocks, self.rates, strict=True)]

    def end(self, embedder: Embedder, tokens: Tokens) -> Tokens:
        whole = transformer(embedder).norm(tokens.whole)
        if self.part_norm is None:
            return tokens._replace(whole=whole)
        return Tokens(whole, self.part_norm(tokens.patches), self.part_norm(tokens.stripes))

    def adopt(self, embedder: Embedder) -> None:
        vit = transformer(embedder)
        for mine, original in zip(self.part_blocks, self._originals(vit), strict=True):
            mine.load_state_dict(original.state_dict())
        if self.part_norm is not None:
            self.part_norm.load_state_dict(vit.norm.state_dict())

    def _originals(self, vit: VisionTransformer) -> nn.ModuleList:
        """The pretrained blocks of which there are copies."""
        return vit.blocks[self.first : self.first + self.part_count]

    def _path(self, block: nn.Module, rate: float) -> Sequences:
        """The block with drop path, drawn for each sequence."""

        def run(tokens: Tensor) -> Tensor:
            scales = branch_scales((rate,), len(tokens))[0].to(tokens) if self.training else None
            answer: Tensor = block(tokens, scales)
            return answer

        return run


def transformer(embedder: Embedder) -> VisionTransformer:
    """The embedder's backbone, as what it is."""
    assert isinstance(embedder.backbone, VisionTransformer)
    return embedder.backbone


def make_trunk(embedder: Embedder, blocks: int, stripes: int, parts: bool) -> Trunk:
    """The trunk that fits the embedder's backbone."""
    kind = TokenTrunk if isinstance(embedder.backbone, VisionTransformer) else MapTrunk
    return kind(embedder, blocks, stripes, parts)


class MapBlock(nn.Module):
    """Pre-norm transformer block for the tokens of a convolutional map, which brings no block of its own.

    Both branches end in a layer of zeros, so that the block starts as the identity and keeps the features that the
    backbone was warm-started with. ``dim`` may be 2048: attention and MLP then work at the width of a ViT-S.
    """

    WIDTH, HEAD = 384, 64

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = min(dim, self.WIDTH)
        self.heads = max(1, width // self.HEAD)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * width), nn.Linear(width, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * width), nn.Linear(4 * width, dim)
        for layer in (self.qkv, self.fc1):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for layer in (self.proj, self.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, d) -> (B, n, d)."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))

    def attention(self, tokens: Tensor) -> Tensor:
        """Multi-head self-attention, written out: torch's fused kernels add in no fixed order on CUDA."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))
