"""Unpacks the ELF file inside a vmlinuz.

Layout: Documentation/x86/boot.rst, "The Real-Mode Kernel Header".  The payload is compressed as
the kernel's configuration says, in Debian's cloud kernel with LZ4 (a frame of the legacy kind), in
the plain one with XZ.  The size of what it unpacks to follows (u32; scripts/Makefile.lib,
size_append).
"""

import lzma
import struct

from guest.image.errors import VmlinuxError
from guest.image.tools import run

__all__ = ("extract",)

_SETUP_SECTS = 0x1F1
_HEADER_MAGIC = 0x202
_VERSION = 0x206
_PAYLOAD_OFFSET = 0x248
_HEADER_END = 0x250

_FIRST_VERSION_WITH_PAYLOAD = 0x208
_SECTOR = 512
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_XZ_MAGIC = b"\xfd7zXZ\0"


def extract(vmlinuz: bytes) -> bytes:
    """Return the ELF file inside ``vmlinuz``.

    :raise VmlinuxError: it is not a bzImage with an LZ4 or XZ payload.
    """
    if len(vmlinuz) < _HEADER_END or vmlinuz[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise VmlinuxError("not a bzImage: no boot header")
    (version,) = struct.unpack_from("<H", vmlinuz, _VERSION)
    if version < _FIRST_VERSION_WITH_PAYLOAD:
        raise VmlinuxError(f"boot protocol {version:#x} does not say where the payload is")
    offset, length = struct.unpack_from("<II", vmlinuz, _PAYLOAD_OFFSET)
    # Zero means four, for the oldest boot loaders.
    start = ((vmlinuz[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    payload = vmlinuz[start : start + length]
    if len(payload) != length:
        raise VmlinuxError("the payload ends after the file")
    (size,) = struct.unpack_from("<I", payload, length - 4)
    elf = _unpacked(payload[:-4])
    if len(elf) != size or not elf.startswith(b"\x7fELF"):
        raise VmlinuxError(f"the payload is not an ELF file of {size} bytes")
    return elf


def _unpacked(payload: bytes) -> bytes:
    if payload.startswith(_LZ4_LEGACY_MAGIC):
        return run(("lz4", "-dcq"), error=VmlinuxError, what="unpack the payload", stdin=payload)
    if payload.startswith(_XZ_MAGIC):
        try:
            return lzma.decompress(payload)
        except lzma.LZMAError as broken:
            raise VmlinuxError(f"the payload's XZ frame is broken: {broken}") from broken
    raise VmlinuxError("the payload is neither an LZ4 nor an XZ frame")
