#!/usr/bin/env bash
# Library: torch 2.13.0 (CPU, with oneDNN 3.12.0). Seen: 2026-11-30, on a processor with AVX-512 and bf16.
# Surprise: every new shape of a bf16 product keeps about half a MiB, up to 1024 shapes: half of it in oneDNN's cache of
# primitives, half in a second cache inside torch. ONEDNN_PRIMITIVE_CACHE_CAPACITY=0, which is documented to switch the
# first off, leaves the second; that one obeys LRU_CACHE_CAPACITY alone.
# Why it matters: where sizes change with every batch (sparse convolutions, point clouds) a process grows for hundreds of
# steps, which looks like a leak, and the small blocks keep holes of the heap apart.
# Tandem: models/lidar/backend_torch.py (`_padded`) pads rows to few lengths; engine/heap.py keeps large tensors out of
# the heap. Figures: docs/lab_book.md, memory of a run on the CPU.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$work/grow.py" <<'PYTHON'
import ctypes
import sys

import torch


class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info


def in_use():
    info = libc.mallinfo2()
    return (info.uordblks + info.hblkhd) / 2**20


def product(rows):
    torch.zeros(rows, 64, dtype=torch.bfloat16) @ torch.zeros(64, 32, dtype=torch.bfloat16)


torch.set_num_threads(1)
product(100)
before = in_use()
for index in range(800):
    product(101 + 7 * index)
grown = in_use() - before
print(f"{grown:.0f}")
PYTHON
grown() { env "$@" "$work/venv/bin/python" "$work/grow.py"; }
echo "expected: with the cache of primitives off, 800 shapes leave nothing behind"
default=$(grown A=1)
onednn_off=$(grown ONEDNN_PRIMITIVE_CACHE_CAPACITY=0)
both_off=$(grown ONEDNN_PRIMITIVE_CACHE_CAPACITY=0 LRU_CACHE_CAPACITY=1)
echo "seen, MiB in use after 800 shapes: $default as it is, $onednn_off with ONEDNN_PRIMITIVE_CACHE_CAPACITY=0, $both_off with"
echo "LRU_CACHE_CAPACITY=1 too"
((default > 300 && onednn_off > 100 && both_off < 30)) || { echo "torch no longer does what this script states" >&2; exit 1; }
