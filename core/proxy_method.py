"""What CAP and O2CAP share: clusters split by camera into proxies, drawn, contrasted with and updated.

Equations: docs/methods/cap.md, "Proxies" and "Batches".
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from core.config import Config
from core.data import Batch, Labels, Needs, TrainingData
from core.memory import ProxyMemory
from core.method import Method
from core.proxy_losses import sum_of_camera_means
from core.sampling import proxy_batches

SAMPLING = ("proxies", "identities")


class ProxyMethod(Method):
    """A memory of proxies, its sampler and its update; a method adds the loss.

    Its settings hold temperature, momentum, by_camera and sampling. Without ``by_camera`` all images count as taken by
    one camera, so that a proxy is a cluster.
    """

    proxies: ProxyMemory

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Cameras: for the proxies, and for the sampler that draws them."""
        settings = config.settings
        sampler = settings.by_camera if settings.sampling == "proxies" else config.sampler.uses_camera
        uses = {"loss": settings.by_camera, "sampler": sampler}
        return Needs(cameras=frozenset(use for use, wanted in uses.items() if wanted))

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """Proxies are the unit means of a cluster's features in a camera."""
        features = data.features()
        cameras = self._cameras(data, "loss")
        self.proxies = ProxyMemory(features, labels.ids, cameras, self.config.settings.momentum)

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        """K images for each of P proxies, or the baseline's batches of clusters."""
        if self.config.settings.sampling == "identities":
            return super().batches(labels, data, rng)
        sampler = self.config.sampler
        return proxy_batches(labels.ids, self._cameras(data, "sampler"), sampler.identities, sampler.instances, rng)

    def logits(self, output: dict[str, Tensor]) -> Tensor:
        """(B, U) similarities over the temperature."""
        return self.proxies.logits(output["feature"], self.config.settings.temperature)

    def own_proxies(self, batch: Batch) -> Tensor:
        """(B,) the proxy of each image."""
        return self.proxies.of_image[batch.indices]

    def per_camera(self, losses: Tensor, batch: Batch) -> Tensor:
        """The sum over the cameras in the batch of the mean over each camera's images; losses (B,)."""
        return sum_of_camera_means(losses, self.proxies.cameras[self.own_proxies(batch)])

    def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
        """V_u <- unit(mu V_u + (1 - mu) f), image after image in batch order."""
        self.proxies.update(output["feature"], self.own_proxies(batch))

    def _cameras(self, data: TrainingData, use: str) -> np.ndarray:
        return data.cameras(use) if self.config.settings.by_camera else np.zeros(len(data), dtype=np.int64)


def require_sampling(name: str) -> None:
    """A ValueError unless ``settings.sampling`` is known."""
    if name not in SAMPLING:
        raise ValueError(f"settings.sampling is one of {', '.join(SAMPLING)}, not '{name}'")
