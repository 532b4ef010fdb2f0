"""Stripe-driven fusion blocks, all tokens together and each stripe by itself: docs/methods/sdft.md, "Fusion block"."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import UserError

Sequences = Callable[[Tensor], Tensor]  # a transformer block: token sequences (B, n, d) to the same shape


class Tokens(NamedTuple):
    """What a fusion block reads and writes.

    whole (B, d): the class token g. patches (B, N, d): row after row. stripes (B, S, d): the stripe tokens t.
    """

    whole: Tensor
    patches: Tensor
    stripes: Tensor


def enter(whole: Tensor, patches: Tensor, stripes: int) -> Tokens:
    """The state before the first fusion block: every stripe token is a copy of the class token (B, d)."""
    return Tokens(whole, patches, whole[:, None].expand(-1, stripes, -1))


def split_stripes(patches: Tensor, rows: int, stripes: int) -> Tensor:
    """(B, N, d) patches of a grid of ``rows`` -> (B, S, N / S, d): stripe s holds rows s rows/S to (s+1) rows/S."""
    if rows % stripes:
        raise UserError(
            f"settings.stripes {stripes} does not divide the {rows} rows of the feature map; "
            f"choose a divisor of {rows}, or another input.height"
        )
    return patches.unflatten(1, (stripes, -1))


def fuse(whole: Sequences, part: Sequences | None, tokens: Tokens, rows: int) -> Tokens:
    """One SDF block: a global path over all tokens, a part path within the stripes, patches averaged over both.

    (g', Xg) = B_g([g; X]); (t_s', Xp_s) = B_p([t_s; X_s]); X' = (Xg + concat_s Xp_s) / 2. All stripes share ``part``
    (B_p); None leaves the part path out, for a last block whose stripe tokens nobody reads.
    """
    seen = whole(torch.cat([tokens.whole[:, None], tokens.patches], dim=1))
    token, patches = seen[:, 0], seen[:, 1:]
    if part is None:
        return Tokens(token, patches, tokens.stripes)
    striped = split_stripes(tokens.patches, rows, tokens.stripes.shape[1])
    sequences = torch.cat([tokens.stripes[:, :, None], striped], dim=2)
    inside = part(sequences.flatten(0, 1)).view_as(sequences)
    return Tokens(token, (patches + inside[:, :, 1:].flatten(1, 2)) / 2, inside[:, :, 0])


def stripe_features(tokens: Tokens, rows: int) -> Tensor:
    """(B, S, d) raw parts: stripe token plus mean patch of its stripe, halved.

    The neck that follows cancels the factor; the half has the scale of the class token, whose trained neck the part
    necks start from.
    """
    striped = split_stripes(tokens.patches, rows, tokens.stripes.shape[1])
    return (tokens.stripes + striped.mean(dim=2)) / 2
