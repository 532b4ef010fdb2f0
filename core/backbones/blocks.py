"""torchvision's residual blocks, and the same without the ReLU at their end.

torchvision brings torch's compiler along, which takes longer to load than torch itself: import this module, and
torchvision, only where a network is made.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck


class LinearBasicBlock(BasicBlock):
    """A basic block without the ReLU at its end."""

    def forward(self, features: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        return branch + (features if self.downsample is None else self.downsample(features))


class LinearBottleneck(Bottleneck):
    """A bottleneck without the ReLU at its end."""

    def forward(self, features: Tensor) -> Tensor:
        branch = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features))))))
        branch = self.bn3(self.conv3(branch))
        return branch + (features if self.downsample is None else self.downsample(features))


LINEAR: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: LinearBasicBlock, Bottleneck: LinearBottleneck}
