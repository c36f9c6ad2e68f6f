"""Bytes of a message as an object with its fields, by the definition that the recording carries."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from data.convert.logs.kinds import ros_type

Decode = Callable[[bytes], Any]
"""Bytes of one message -> object with its fields."""

INSTALL = "recordings need the extra [logs]: pip install 'tandem-pretrain[logs]'"


@dataclass(frozen=True, kw_only=True)
class Definition:
    """How the messages of a topic are to be read.

    Attributes:
        type: as `data.convert.logs.base.Topic.type`.
        encoding: of the bytes, as `data.convert.logs.base.Topic.encoding`.
        language: of the definition: "ros1msg", "ros2msg", "ros2idl", "protobuf", "jsonschema"; "" where there is none.
        text: the definition.
    """

    type: str
    encoding: str
    language: str
    text: bytes


_ZSTD = b"\x28\xb5\x2f\xfd"
"""Of messages that a recorder compressed one by one; CDR itself begins with 0."""
_MAX_MESSAGE_BYTES = 1 << 30
"""Unpacked; far above any message of a sensor."""


class UndefinedError(Exception):
    """Nothing here can read messages of a type; says why."""


@functools.lru_cache(maxsize=256)
def decoder(definition: Definition) -> Decode:
    """What reads messages of a type; numeric arrays become numpy arrays, of protobuf and JSON what these have.

    Kept: compiling a definition takes 0.1 s, and all parts of a recording have the same ones.

    Raises:
        UndefinedError: an encoding that is not read here; no definition, or a broken one.
        ImportError: the extra [logs] is not installed.
    """
    if definition.encoding in ("ros1", "cdr"):
        return _ros_decoder(definition)
    if definition.encoding == "protobuf" and definition.language == "protobuf":
        return _protobuf_decoder(definition)
    if definition.encoding == "json":
        return _json_decoder(definition)
    raise UndefinedError(
        f"messages of {definition.type} are in encoding {definition.encoding!r} with a definition in "
        f"{definition.language or 'no language'!r}; ros1, cdr, protobuf and json are read"
    )


# ---- ROS

_LIVOX = """std_msgs/Header header
uint64 timebase
uint32 point_num
uint8 lidar_id
uint8[3] rsvd
CustomPoint[] points
================================================================================
MSG: {package}/CustomPoint
uint32 offset_time
float32 x
float32 y
float32 z
uint8 reflectivity
uint8 tag
uint8 line
"""
"""ROS 2's databases before Iron hold no definitions; of the types that are read here only this is not ROS' own."""


def _ros_decoder(definition: Definition) -> Decode:
    try:
        from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
    except ImportError as error:
        raise ImportError(INSTALL) from error

    name = definition.type
    # Before it reaches the library: names become source code there.
    if ros_type(name) != name:
        raise UndefinedError(f"{name!r} is no name of a ROS type, such as sensor_msgs/msg/PointCloud2")
    own = get_typestore(Stores.EMPTY)
    text = definition.text.decode("utf-8", errors="replace")
    try:
        if not text.strip() and definition.encoding == "cdr":
            own = get_typestore(Stores.LATEST)
            package = name.partition("/")[0]
            if name.endswith("/CustomMsg") and package.startswith("livox"):
                own.register(get_types_from_msg(_LIVOX.format(package=package), name))
        elif definition.language == "ros2idl":
            for part in _idl_files(text):
                own.register(get_types_from_idl(part))
        else:
            own.register(get_types_from_msg(text, name))
        if name not in own.fielddefs:
            raise UndefinedError(f"type {name}: the recording holds no definition of it, and it is none of ROS' own")
        own.get_msgdef(name)
    except UndefinedError:
        raise
    except Exception as error:  # the parser's, of several kinds
        raise UndefinedError(f"type {name}: its definition cannot be read ({_short(error)})") from error
    if definition.encoding == "ros1":
        return lambda data: own.deserialize_ros1(data, name)

    def decode(data: bytes) -> Any:
        return own.deserialize_cdr(_unzipped(data) if data.startswith(_ZSTD) else data, name)

    return decode


def _unzipped(data: bytes) -> bytes:
    import zstandard

    return bytes(zstandard.ZstdDecompressor().stream_reader(data).read(_MAX_MESSAGE_BYTES))


def _idl_files(text: str) -> list[str]:
    """The files of a definition in IDL, which stand in it one after the other under headings, or the only one."""
    line = "=" * 80 + "\n"
    if not text.startswith(f"{line}IDL: "):
        return [text]
    return [part.partition("\n")[2] for part in text.split(line)[1:]]


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# ---- protobuf


def _protobuf_decoder(definition: Definition) -> Decode:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    try:
        files = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(definition.text).file}
        pool = descriptor_pool.DescriptorPool()
        for name in _imports_first(files):
            pool.Add(files[name])
        made = message_factory.GetMessageClass(pool.FindMessageTypeByName(definition.type))
    except Exception as error:  # of the parser, of the pool, of names that are not there
        raise UndefinedError(f"type {definition.type}: its definition cannot be read ({_short(error)})") from error

    def decode(data: bytes) -> Any:
        message = made()
        message.ParseFromString(data)
        return message

    return decode


def _imports_first(files: dict[str, Any]) -> list[str]:
    """Names of files of definitions in an order in which each comes after those that it imports."""
    ordered: dict[str, None] = {}
    waiting = list(files)
    opened: set[str] = set()
    while waiting:  # no recursion: the depth is the file's to choose
        name = waiting[-1]
        missing = (
            [] if name in opened else [one for one in files[name].dependency if one in files and one not in ordered]
        )
        opened.add(name)
        if missing:
            waiting.extend(missing)
        else:
            ordered.setdefault(waiting.pop())
    return list(ordered)


# ---- JSON


def _json_decoder(definition: Definition) -> Decode:
    """Objects of attributes; texts that the schema says are base64 become bytes."""
    packed = {"data"} if definition.type.startswith("foxglove.") else set()
    if definition.language == "jsonschema" and definition.text.strip():
        try:
            packed |= _base64_fields(json.loads(definition.text))
        except (ValueError, RecursionError) as error:
            raise UndefinedError(f"type {definition.type}: its schema is no JSON ({_short(error)})") from error

    def made(fields: dict[str, Any]) -> SimpleNamespace:
        for name in packed & fields.keys():
            if isinstance(fields[name], str):
                fields[name] = base64.b64decode(fields[name], validate=True)
        return SimpleNamespace(**fields)

    return lambda data: json.loads(data, object_hook=made)


def _base64_fields(schema: Any) -> set[str]:
    """Names of all fields, at any depth, that a schema says are base64."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            fields = part.get("properties")
            for name, field in fields.items() if isinstance(fields, dict) else ():
                if isinstance(field, dict) and field.get("contentEncoding") == "base64":
                    found.add(name)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return found
