"""O2CAP (Wang et al., TIP 2022): CAP's proxies, associated by clusters (offline) and by similarity at each step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core import proxy_losses
from core.data import Batch
from core.proxy_method import ProxyMethod, require_sampling


@dataclass(frozen=True)
class Settings:
    """docs/methods/o2cap.md, "Settings".

    association_weight: share w of <f, V_u> in the similarity that the online term chooses by. online_positives: posK.
    by_camera, sampling: as CAP's.
    """

    temperature: float = 0.07
    momentum: float = 0.2
    w_offline: float = 1.0
    w_online: float = 1.0
    negatives: int = 50
    online_positives: int = 3
    association_weight: float = 0.15
    by_camera: bool = True
    sampling: str = "proxies"

    def __post_init__(self) -> None:
        require_sampling(self.sampling)
        if self.negatives < 1 or self.online_positives < 1:
            raise ValueError("settings.negatives and settings.online_positives must be at least 1")
        if not 0 <= self.association_weight <= 1:
            raise ValueError(f"settings.association_weight is a share in [0, 1], not {self.association_weight}")
        if self.w_offline <= 0 and self.w_online <= 0:
            raise ValueError("settings.w_offline or settings.w_online must be above 0: nothing else trains")


class O2CAP(ProxyMethod):
    """sum_c mean_{i in c} ( L_offline(i) + L_online(i) ), both from the first epoch on."""

    Settings = Settings

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms whose weight is above 0."""
        settings: Settings = self.config.settings
        logits = self.logits(output)
        terms = {}
        if settings.w_offline > 0:
            same_cluster = self.proxies.same_cluster(batch.targets)
            offline = proxy_losses.inter_camera(logits, same_cluster, settings.negatives)
            terms["offline"] = settings.w_offline * self.per_camera(offline, batch)
        if settings.w_online > 0:
            terms["online"] = settings.w_online * self.per_camera(self._online(logits, batch), batch)
        return terms

    def _online(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B,) the online term."""
        settings: Settings = self.config.settings
        similarity = logits.detach() * settings.temperature
        association = proxy_losses.associations(
            similarity, self.proxies.rows, self.own_proxies(batch), settings.association_weight
        )
        cameras = self.proxies.cameras
        return proxy_losses.online(logits, association, cameras, settings.online_positives, settings.negatives)
