"""Where DeepSpeed keeps the optimizer's state: flat buffers whose content follows from arithmetic alone.

Which elements of which parameter lie where is a function of the parameters, the ZeRO stage and the number of processes:

    stage 0      every process has everything; a buffer is a parameter
    stages 1, 2  the parameters of a group one after another, padded, in equal shares: a buffer a group
    stage 3      each parameter padded and in equal shares; a process' shares of a group's parameters one after
                 another, in stretches of `sub_group_numel` elements: a buffer a stretch

Source: DeepSpeed 0.19.8, runtime/zero: stage_1_and_2.py (`get_data_parallel_partitions`), stage3.py
(`_create_fp16_sub_groups`), partition_parameters.py (`_partition_param`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ALIGNMENT = 2
"""A share at stages 1 and 2 is a multiple of this many elements (DeepSpeed's `nccl_start_alignment_factor`)."""


@dataclass(frozen=True, kw_only=True)
class Param:
    """A trainable parameter.

    Attributes:
        name: in the objective.
        shape: whole, as the objective has it.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one parameter in a buffer.

    Attributes:
        param: whose elements these are.
        start: first of them in the flattened parameter.
        offset: where it lies in the buffer.
        numel: how many follow each other.
    """

    param: Param
    start: int
    offset: int
    numel: int


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A flat tensor of one process; what no piece covers is padding.

    Attributes:
        group: parameter group that it belongs to.
        numel: elements, padding included.
        pieces: what lies in it.
    """

    group: int
    numel: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the optimizer's state lies.

    Attributes:
        groups: parameters of each group, in the optimizer's order.
        stage: ZeRO stage.
        world_size: processes of the run.
        sub_group_numel: elements of a stretch at stage 3.
    """

    groups: tuple[tuple[Param, ...], ...]
    stage: int
    world_size: int
    sub_group_numel: int

    @property
    def parts(self) -> int:
        """Processes whose states differ: at stage 0 there is one state, held by all."""
        return 1 if self.stage == 0 else self.world_size

    def same_buffers(self, other: Layout) -> bool:
        """Whether each process has the same buffers in both (stages 1 and 2 share theirs)."""
        kinds = {0: 0, 1: 1, 2: 1, 3: 3}
        return kinds[self.stage] == kinds[other.stage] and self.parts == other.parts

    def buffers(self, part: int) -> tuple[Buffer, ...]:
        """Buffers of one process (its rank; 0 at stage 0), in the order in which the optimizer numbers them."""
        found: list[Buffer] = []
        for number, group in enumerate(self.groups):
            if self.stage == 0:
                found += [_buffer(number, [(p, 0, p.numel)]) for p in group]
            elif self.stage == 3:
                found += [_buffer(number, stretch) for stretch in self._stretches(group, part)]
            else:
                found.append(self._share(number, group, part))
        return tuple(found)

    def _share(self, number: int, group: Sequence[Param], part: int) -> Buffer:
        # The group as one flat vector, padded to whole units; this process has the elements from begin to end.
        unit = ALIGNMENT * self.world_size
        size = -(-sum(p.numel for p in group) // unit) * ALIGNMENT
        begin, end = part * size, (part + 1) * size
        pieces, first = [], 0
        for p in group:
            start, stop = max(begin - first, 0), min(end - first, p.numel)
            if start < stop:
                pieces.append(Piece(param=p, start=start, offset=first + start - begin, numel=stop - start))
            first += p.numel
        return Buffer(group=number, numel=size, pieces=tuple(pieces))

    def _stretches(self, group: Sequence[Param], part: int) -> Iterator[list[tuple[Param, int, int]]]:
        stretch: list[tuple[Param, int, int]] = []
        numel = 0
        for p in group:
            size = -(-p.numel // self.world_size)
            stretch.append((p, part * size, size))
            numel += size
            if numel >= self.sub_group_numel:  # a parameter is never cut: a stretch may be longer
                yield stretch
                stretch, numel = [], 0
        if stretch:
            yield stretch

    def record(self) -> list[list[str]]:
        """Names and shapes by group, for a checkpoint: "backbone.first.weight 16x6"."""
        return [[f"{p.name} {'x'.join(map(str, p.shape)) or 'scalar'}" for p in group] for group in self.groups]


def _buffer(group: int, shares: Sequence[tuple[Param, int, int]]) -> Buffer:
    """Shares (parameter, first element, elements with padding) one after another."""
    pieces, offset = [], 0
    for p, start, size in shares:
        numel = min(size, p.numel - start)
        if numel > 0:
            pieces.append(Piece(param=p, start=start, offset=offset, numel=numel))
        offset += size
    return Buffer(group=group, numel=offset, pieces=tuple(pieces))
