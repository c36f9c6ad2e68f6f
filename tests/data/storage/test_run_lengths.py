"""Planes as run lengths: nothing is lost, bytes are the same each time, and a file of anything is refused."""

import gzip
import io

import numpy as np
import pytest

from data.storage.run_lengths import SizeError, decode_runs, encode_runs, npy_bytes, read_runs


def plane_of(rng: np.random.Generator, height: int, width: int, values: int) -> np.ndarray:
    return np.repeat(rng.integers(0, values, (height, -(-width // 7))), 7, axis=1)[:, :width]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (31, 53)])
@pytest.mark.parametrize("values", [1, 3, 256, 257, 65536])
def test_planes_come_back(height, width, values):
    plane = plane_of(np.random.default_rng(height * width), height, width, values)
    data = encode_runs(plane, 3)
    assert data == encode_runs(plane.astype(np.int32), 3)
    back = decode_runs(data, (height, width))
    np.testing.assert_array_equal(back, plane)
    assert back.dtype == (np.uint8 if plane.max() < 256 else np.uint16)
    assert back.flags.writeable


@pytest.mark.parametrize("values", [1, 3, 300])
@pytest.mark.parametrize("rows", [[0], [30], [30, 2, 2, 17, 0], [*range(31)]], ids=["first", "last", "some", "all"])
def test_a_window_is_what_the_plane_has_there(values, rows):
    plane = plane_of(np.random.default_rng(values), 31, 53, values)
    runs = read_runs(encode_runs(plane, 3), (31, 53))
    assert runs.largest == plane.max()
    for left, right in ((0, 53), (0, 1), (52, 53), (6, 30), (7, 14)):
        got = runs.window(np.array(rows), left, right)
        np.testing.assert_array_equal(got, plane[rows, left:right])
        assert got.dtype == plane.astype(np.uint8 if plane.max() < 256 else np.uint16).dtype


def test_a_window_of_runs_beyond_their_row_and_of_none():
    """Such files are not ours, but they say what each pixel is."""
    content = npy_bytes(np.array([[5, 9, 7, 8, 2], [3, 0, 14, 0, 7]], dtype="<u2"))
    runs = read_runs(gzip.compress(content), (4, 6))
    for rows in ([0, 1, 2, 3], [3, 1], [2]):
        for left, right in ((0, 6), (2, 5), (5, 6)):
            np.testing.assert_array_equal(runs.window(np.array(rows), left, right), runs.plane()[rows, left:right])


def test_anyone_can_read_them():
    plane = plane_of(np.random.default_rng(0), 31, 53, 900)
    values, lengths = np.load(io.BytesIO(gzip.decompress(encode_runs(plane, 3))))
    np.testing.assert_array_equal(np.repeat(values, lengths).reshape(31, 53), plane)


def test_a_uniform_plane_wider_than_a_run_can_be_long():
    plane = np.zeros((3, 65535), np.uint8)
    assert decode_runs(encode_runs(plane, 1), plane.shape).shape == plane.shape
    for refused in (np.zeros((1, 65536), int), np.array([[-1]]), np.array([[65536]]), np.zeros((0, 3), int)):
        with pytest.raises(ValueError, match="expected 16 bit"):
            encode_runs(refused, 1)


def test_another_size_is_told_from_damage():
    data = encode_runs(np.zeros((4, 6), int), 3)
    for size in ((4, 5), (5, 6), (1000, 1000)):
        with pytest.raises(SizeError, match="runs of 24 pixels"):
            decode_runs(data, size)


def test_every_cut_and_every_flipped_bit_is_refused():
    """gzip's checksum sees what its parser lets pass; bits without meaning (the file's time, padding) may change."""
    plane = plane_of(np.random.default_rng(1), 6, 20, 9)
    data = encode_runs(plane, 3)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"."):
            decode_runs(data[:length], plane.shape)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            got = decode_runs(bytes(damaged), plane.shape)
        except ValueError:
            continue
        np.testing.assert_array_equal(got, plane)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x01\x00\xff\xff" + bytes(9),
        b"\x93NUMPY\x01\x00\x01\x00" + bytes(9),
        bytes(500),
    ],
)
def test_no_runs(content):
    with pytest.raises(ValueError, match=r"npy|numbers"):
        decode_runs(gzip.compress(content), (20, 20))


def test_a_bomb_is_refused_without_unpacking_it():
    with pytest.raises(ValueError, match="more runs than pixels"):
        decode_runs(gzip.compress(bytes(200 << 20)), (900, 1600))
