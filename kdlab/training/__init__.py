"""What runs inside the process of a job, on torch, mmengine and mmdet."""

import kdlab.mmcv_ops  # noqa: F401 - before anything imports mmdet
