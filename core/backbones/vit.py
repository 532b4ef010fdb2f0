"""Vision transformers for re-identification: any input size, optional overlap, conv stem and camera embedding.

Parameter names are those of the TransReID family, so its checkpoints need no key map but a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.resnet import InstanceBatchNorm
from core.errors import UserError

Size = tuple[int, int]


class VisionTransformer(nn.Module):
    """ViT (arXiv 2010.11929) with pre-norm blocks; the class token is the embedding.

    width, heads, depth: of the blocks, whose MLP is 4 x width.
    image_size: (height, width) whose patch grid the position embedding is learned for; for another input it is
        resized on the fly, bilinearly.
    patch, stride: side of a patch and distance between patches, in pixels; stride < patch makes them overlap.
    stem: 0, or the channels of the convolutional ICS stem (64 in the LUPerson weights), which halves the image first.
    drop_path: chance that a residual branch is skipped in the last block; it grows linearly from 0 in the first.
    cameras: 0, or the rows of the camera embedding (SIE, arXiv 2102.04378), added to all tokens times camera_scale.
    dim: length of the embedding and channels of the map.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 12,
        *,
        image_size: Size = (256, 128),
        patch: int = 16,
        stride: int = 16,
        stem: int = 0,
        drop_path: float = 0.1,
        cameras: int = 0,
        camera_scale: float = 3.0,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise UserError(f"drop_path is a probability below 1, not {drop_path}")
        self.dim = width
        self.patch_embed = PatchEmbedding(width, patch, stride, stem)
        self.grid = self.patch_embed.grid(image_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.drop_path = tuple(drop_path * block / max(1, depth - 1) for block in range(depth))
        self.camera_scale = camera_scale
        self.sie_embed: nn.Parameter | None = None
        self._initialise()
        if cameras:
            self.embed_cameras(cameras)

    def _initialise(self) -> None:
        """Truncated normal, as in the reference networks; convolutions keep torch's own rule."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed_cameras(self, count: int) -> None:
        """Give the network a camera embedding of ``count`` rows; images are then passed with their cameras."""
        self.sie_embed = nn.Parameter(torch.empty(count, 1, self.dim))
        nn.init.trunc_normal_(self.sie_embed, std=0.02)

    def forward(
        self,
        images: Tensor,
        cameras: Tensor | None = None,
        after: Mapping[str, nn.Module] | None = None,
        hidden: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class token (B, dim) and map of patch tokens (B, dim, h, w) of images (B, 3, H, W), both normalised.

        cameras: (B,), read only with a camera embedding. A transformer has no stages for ``after`` to follow.
        hidden: as in ``tokens``.
        """
        if after:
            raise UserError(f"a vision transformer has no stages, so no module can follow {sorted(after)}")
        tokens, grid = self.tokens(images, cameras, hidden=hidden)
        tokens = self.norm(tokens)
        return tokens[:, 0], tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)

    def tokens(
        self,
        images: Tensor,
        cameras: Tensor | None = None,
        blocks: int | None = None,
        hidden: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Size]:
        """Tokens (B, 1 + h w, dim) after the first ``blocks`` blocks (None: all), before the last norm; grid (h, w).

        hidden: (B, h, w) patches of which nothing is seen but their place, and the vector (dim,) that stands for them.
        """
        patches = self.patch_embed(images)
        height, width = patches.shape[2:]
        # (B, d, h, w) in channels_last memory is already (B, h w, d): nothing is copied here.
        tokens = patches.permute(0, 2, 3, 1).flatten(1, 2)
        if hidden is not None:
            where, instead = hidden
            tokens = torch.where(where.flatten(1)[:, :, None], instead.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens + resize_positions(self.pos_embed, self.grid, (height, width))
        if self.sie_embed is not None:
            tokens = tokens + self.camera_scale * self._camera_rows(self.sie_embed, cameras)
        drops = self.training and any(self.drop_path)
        scales = branch_scales(self.drop_path, len(tokens)).to(tokens) if drops else None
        for number, block in enumerate(self.blocks[:blocks]):
            tokens = block(tokens, None if scales is None else scales[number])
        return tokens, (height, width)

    def _camera_rows(self, table: Tensor, cameras: Tensor | None) -> Tensor:
        """(B, 1, dim) embedding of each image's camera."""
        if cameras is None:
            raise UserError("this vision transformer embeds cameras, but the images came without theirs")
        if len(cameras) and not 0 <= int(cameras.min()) <= int(cameras.max()) < len(table):
            raise UserError(
                f"cameras {int(cameras.min())} to {int(cameras.max())} do not fit an embedding of {len(table)} cameras"
            )
        return table[cameras]


class PatchEmbedding(nn.Module):
    """Images (B, 3, H, W) -> patches (B, width, h, w), directly or behind the ICS stem (arXiv 2111.12084).

    The stem is three convolutions at half the resolution; IBN in the first two makes it robust to style.
    """

    def __init__(self, width: int, patch: int, stride: int, stem: int) -> None:
        super().__init__()
        if not 0 < stride <= patch:
            raise UserError(f"patches of {patch} pixels at stride {stride}: the stride must be 1 to {patch}")
        if stem and (patch % 2 or stride % 2):
            raise UserError(f"the stem halves the image: patch {patch} and stride {stride} must be even")
        self.patch, self.stride = patch, stride
        self.conv = make_stem(stem) if stem else nn.Identity()
        reduced = 2 if stem else 1
        self.proj = nn.Conv2d(stem or 3, width, patch // reduced, stride=stride // reduced)

    def grid(self, image_size: Size) -> Size:
        """Patches along each side of an image of (height, width)."""
        height, width = image_size
        if min(height, width) < self.patch:
            raise UserError(f"an image of {height} x {width} has no patch of {self.patch} pixels")
        return (height - self.patch) // self.stride + 1, (width - self.patch) // self.stride + 1

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.conv(images))


def make_stem(channels: int) -> nn.Sequential:
    """conv 7 stride 2, IBN, ReLU, conv 3, IBN, ReLU, conv 3, BN, ReLU; numbered as in the released weights."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        InstanceBatchNorm(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        InstanceBatchNorm(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        GroupedBatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); each branch may be scaled per image (drop path)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor, scales: Tensor | None) -> Tensor:
        """tokens (B, T, d); scales (2, B, 1, 1) of the two branches, or None for 1."""
        attended = self.attn(self.norm1(tokens))
        tokens = tokens + (attended if scales is None else scales[0] * attended)
        computed = self.mlp(self.norm2(tokens))
        return tokens + (computed if scales is None else scales[1] * computed)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(d / heads)) v per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: the backward pass of torch's fused kernels adds in no fixed order on CUDA.
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with four times the width and GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


def branch_scales(rates: tuple[float, ...], batch: int) -> Tensor:
    """(L, 2, B, 1, 1): 0 where an image skips a residual branch, 1 / (1 - rate) where not (arXiv 1603.09382).

    Drawn on the CPU from torch's global stream, all blocks at once, so that devices agree.
    """
    keep = 1 - torch.tensor(rates).view(-1, 1, 1, 1, 1)
    return (torch.rand(len(rates), 2, batch, 1, 1) < keep) / keep


def resize_positions(embedding: Tensor, grid: Size, wanted: Size) -> Tensor:
    """(1, 1 + h w, d) position embedding of a patch grid (h, w), bilinearly resized to the grid ``wanted``.

    The class token's row stays. Written as two matrix products, whose gradient is deterministic on CUDA.
    """
    if grid == wanted:
        return embedding
    rows = interpolation(grid[0], wanted[0]).to(embedding)
    columns = interpolation(grid[1], wanted[1]).to(embedding)
    patches = embedding[:, 1:].unflatten(1, grid)
    resized = torch.einsum("yh,xw,nhwd->nyxd", rows, columns, patches)
    return torch.cat([embedding[:, :1], resized.flatten(1, 2)], dim=1)


@lru_cache(maxsize=64)
def interpolation(length: int, wanted: int) -> Tensor:
    """(wanted, length) matrix of linear interpolation between pixel centres, as ``F.interpolate`` does it."""
    identity = torch.eye(length, dtype=torch.float64)[None]
    return F.interpolate(identity, size=wanted, mode="linear", align_corners=False)[0].T


def vit_tiny(**options: Any) -> VisionTransformer:
    """ViT-Ti/16: width 192, 3 heads."""
    return VisionTransformer(192, 3, **options)


def vit_tiny6_ics(**options: Any) -> VisionTransformer:
    """6 of ViT-Ti's 12 blocks behind half an ICS stem, patch 8, images of 64 x 32: trains on two CPU cores."""
    return vit_tiny(**{"depth": 6, "image_size": (64, 32), "patch": 8, "stride": 8, "stem": 32, **options})


def vit_small(**options: Any) -> VisionTransformer:
    """ViT-S/16: width 384, 6 heads; drop path 0.3 as in TransReID-SSL's unsupervised runs."""
    return VisionTransformer(384, 6, **{"drop_path": 0.3, **options})


def vit_small_ics(**options: Any) -> VisionTransformer:
    """ViT-S/16 behind the ICS stem."""
    return vit_small(**{"stem": 64, **options})


def vit_base(**options: Any) -> VisionTransformer:
    """ViT-B/16: width 768, 12 heads."""
    return VisionTransformer(768, 12, **options)


def vit_base_ics(**options: Any) -> VisionTransformer:
    """ViT-B/16 behind the ICS stem."""
    return vit_base(**{"stem": 64, **options})
