"""Single-camera elimination: a cluster seen by one camera alone may be that camera's style.

docs/methods/jcl.md, "Single-camera elimination"; the guard is in ``JCL.label``.
"""

from __future__ import annotations

import numpy as np


def drop_single_camera_clusters(labels: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Labels (N,) in which every cluster with images of one camera only became outliers (-1).

    labels (N,) 0..C-1 or -1, cameras (N,). The clusters left are numbered 0..C'-1 in their old order.
    """
    inside = labels >= 0
    clusters = int(labels.max(initial=-1)) + 1
    first = np.zeros(clusters, dtype=np.int64)
    first[labels[inside]] = cameras[inside]  # the camera of any one member
    several = np.zeros(clusters, dtype=bool)
    several[labels[inside][cameras[inside] != first[labels[inside]]]] = True
    number = np.where(several, np.cumsum(several) - 1, -1)
    filtered = np.full_like(labels, -1)
    filtered[inside] = number[labels[inside]]
    return filtered
