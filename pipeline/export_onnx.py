"""A model as one ONNX network: pixels in, what its distance reads out, for any number of images.

The exporter that follows one run of the network is used: it took 0.2 s where the one that analyses the program took 35
to 54 s and gave the same numbers (resnet18_half). What it gets wrong shows when batches of other sizes are compared.
"""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.files import copy as copy_file
from pipeline.model import Model, has_own_distance

NETWORK = "model.onnx"
PACKAGES = ("onnx", "onnxruntime")
OPSET = 18
TRACED, COMPARED = 2, (1, 5)  # images of a batch: while exporting, and while comparing
TOLERANCE = 1e-4  # of the numbers of features whose length is about 1


class Network(nn.Module):
    """Images (N, 3, H, W) in 0..255 -> the model's outputs, in the order of ``names``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.method = copy.deepcopy(model.method).cpu().float().eval()
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        with torch.no_grad():
            outputs = self.method.embed(torch.zeros(1, 3, *model.size))
        self.names = list(outputs) if has_own_distance(model.method) else ["feature"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.method.embed((images / 255 - self.mean) / self.std)
        return tuple(outputs[name] for name in self.names)


def export(model: Model, file: Path) -> None:
    """Write the model as ONNX, once it gives this model's numbers for batches of other sizes than it was made with.

    Input ``images`` (N, 3, height, width), float32 RGB from 0 to 255; outputs as of ``Model.embed``. Raises UserError
    when a package is missing, when the method's way from images to features cannot be followed, or gives other numbers.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"ONNX needs {' and '.join(missing)}; pip install -r requirements-onnx.txt")
    if model.needs_cameras:
        raise UserError(f"{model.name} is not exported: its test reads the camera of each image")
    network = Network(model).eval()  # the exporter gives it back in the mode that it had
    with TemporaryDirectory() as folder:
        made = Path(folder) / NETWORK
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                torch.onnx.export(
                    network,
                    (torch.zeros(TRACED, 3, *model.size),),
                    str(made),
                    input_names=["images"],
                    output_names=network.names,
                    dynamic_axes={name: {0: "batch"} for name in ("images", *network.names)},
                    opset_version=OPSET,
                    dynamo=False,
                )
            worst = max(largest_difference(network, made, count, model.size) for count in COMPARED)
        except Exception as error:  # exporter and runtime raise unrelated types for what they cannot do
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{model.name} is not exported: its way from images to features cannot be written as ONNX ({reason}); "
                "docs/models.md says which methods can"
            ) from error
        if not worst <= TOLERANCE:
            raise UserError(f"{model.name} is not exported: its ONNX network differs by {worst:.2g} from the model")
        copy_file(made, file)


def largest_difference(network: Network, file: Path, count: int, size: tuple[int, int]) -> float:
    """Between the outputs of network and file for ``count`` random images."""
    import onnxruntime  # an extra of who exports

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # faults are raised; what it prints beside is for its developers
    session = onnxruntime.InferenceSession(str(file), options)
    images = np.random.default_rng(count).integers(0, 256, (count, 3, *size)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images))
    found = session.run(network.names, {"images": images})
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(got - wanted.numpy()).max()) for got, wanted in pairs)
