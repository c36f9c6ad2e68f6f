"""Names of what a run tells, in metrics.jsonl and in TensorBoard.

Apart from `engine.monitor`, so that readers of a run's folder need not import torch.
"""

from __future__ import annotations

LOSS = "train/loss"
LOSS_PART = "train/loss_"
"""Followed by the part's name."""
SKIPPED = "train/skipped"
"""Updates skipped so far because loss or gradient was not finite."""
DATA_SKIPPED = "data/skipped"
"""Different samples that the processes of this attempt left out as damaged, all together."""
EPOCH = "train/epoch"
WATCH = "watch/"
"""Followed by the name in the objective's collapse watch."""
LR = "optim/lr"
GRAD_NORM = "optim/grad_norm"
LOSS_SCALE = "optim/loss_scale"
DATA_S = "time/data_s"
STEP_S = "time/step_s"
SAMPLES_PER_S = "perf/samples_per_s"
POINTS_PER_S = "perf/points_per_s"
DATA_WAIT_SHARE = "perf/data_wait_share"
RSS_GIB = "mem/rss_gib"
CUDA_GIB = "mem/cuda_gib"

ACCURACY = "contrastive_accuracy"
"""Name in the collapse watch of the share of rows whose positive is the most similar."""
TRIVIAL_ACCURACY = 0.99
"""Accuracy in the first epoch above which the task is too easy to teach anything."""
