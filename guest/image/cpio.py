"""Write a cpio archive of the kind that the kernel unpacks ("newc").

Layout: Documentation/driver-api/early-userspace/buffer-format.rst.  Everything belongs to root, and
the same entries always give the same bytes.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ("Directory", "Entry", "File", "Link", "archive")


@dataclass(frozen=True, slots=True)
class Directory:
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Link:
    target: str


Entry = Directory | File | Link


def archive(entries: Mapping[str, Entry]) -> bytes:
    """Return the archive of ``entries``: path without a leading slash -> entry, parents first."""
    members = [_member(i, path, entry) for i, (path, entry) in enumerate(entries.items(), start=1)]
    return b"".join((*members, _record(0, "TRAILER!!!", 0, b"")))


def _member(inode: int, path: str, entry: Entry) -> bytes:
    match entry:
        case Directory(mode):
            return _record(inode, path, stat.S_IFDIR | mode, b"")
        case File(content, mode):
            return _record(inode, path, stat.S_IFREG | mode, content)
        case Link(target):
            return _record(inode, path, stat.S_IFLNK | 0o777, target.encode())


def _record(inode: int, path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    user = group = modified = device = checksum = 0
    numbers = (
        *(inode, mode, user, group, 1, modified, len(content)),
        *(device, device, device, device, len(name), checksum),
    )
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
