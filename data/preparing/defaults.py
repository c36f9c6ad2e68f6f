"""Defaults that the help text of `tandem prepare` shows, too. Light: it imports nothing."""

from __future__ import annotations

SAMPLES_PER_SHARD = 64
MAX_SKIP_SHARE = 0.01
