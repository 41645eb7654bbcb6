"""Is an image file whole? What ITK, in one version or another, reads without a word when it is cut short.

That is NIfTI (the end is whatever the memory held), JPEG, BMP, and up to ITK 5.3 MetaImage and DICOM.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO

from ASFEFusionLib.errors import FusionError

META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}
META_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8}


def check_whole(path: Path, kind: str) -> None:
    """Raise FusionError "file_cut" if the file is certainly shorter than its header needs.

    `kind`: its extension, or ".dcm". Kinds that ITK judges well by itself, and what is no file of its kind, pass.
    """
    if kind in (".nii", ".nii.gz"):
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            check_nifti(file, path)
        return
    check = {".mha": _meta, ".mhd": _meta, ".jpg": _jpeg, ".jpeg": _jpeg, ".bmp": _bmp, ".dcm": _dicom}.get(kind)
    if check and not check(path):
        raise FusionError("file_cut", path=path)


def check_nifti(file: IO[bytes], path: Path) -> None:
    """Raise FusionError "file_cut" naming `path` if the NIfTI file, open at its start, is not whole.

    Of a file opened by gzip the whole is unpacked on the way, so that its sums are checked too.
    """
    try:
        head = file.read(348)
        size, need = file.seek(0, os.SEEK_END), 348
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FusionError("file_cut", path=path) from error
    for order in "<>":  # other headers than NIfTI-1 are ITK's to judge
        if len(head) == 348 and struct.unpack_from(order + "i", head)[0] == 348:
            dim, bits = struct.unpack_from(order + "8h", head, 40), struct.unpack_from(order + "h", head, 72)[0]
            voxels = math.prod(max(n, 1) for n in dim[1 : 1 + min(max(dim[0], 0), 7)])
            need = struct.unpack_from(order + "f", head, 108)[0] + voxels * bits // 8
    if size < need:
        raise FusionError("file_cut", path=path)


def _jpeg(path: Path) -> bool:
    """The last start of a scan must have an end of the picture after it."""
    data = path.read_bytes()
    return data[:2] != b"\xff\xd8" or data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _bmp(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(54)
    if head[:2] != b"BM" or len(head) < 54:
        return head[:2] != b"BM"
    offset, _, width, height, _, bits, packing = struct.unpack_from("<IIiiHHI", head, 10)
    return packing not in (0, 3) or path.stat().st_size >= offset + (width * bits + 31) // 32 * 4 * abs(height)


def _meta(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(1 << 16)
    before, mark, after = head.partition(b"ElementDataFile")
    if not mark:
        return True
    lines = [line.split("=", 1) for line in before.decode("latin-1").splitlines() if "=" in line]
    fields = {key.strip(): value.strip() for key, value in lines}
    name = after.split(b"\n", 1)[0].decode("utf-8", "replace").strip(" =\r")
    data = path if name.upper() == "LOCAL" else path.parent / name
    if not data.is_file():  # lost, or a list or pattern of slices
        return True
    have = data.stat().st_size - (len(before) + len(mark) + after.find(b"\n") + 1 if data == path else 0)
    try:
        if fields.get("CompressedData", "").lower() == "true":
            need = int(fields["CompressedDataSize"])
        else:
            voxels = math.prod(map(int, fields["DimSize"].split()))
            each = META_BYTES[fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")]
            need = voxels * each * int(fields.get("ElementNumberOfChannels", 1))
    except (KeyError, ValueError):
        return True
    return have >= need or fields.get("BinaryData", "").lower() == "false"


def _dicom(path: Path) -> bool:
    """The pixels (tag 7FE0,0010) must be as many as their length says; after packed ones stands an end mark."""
    data = path.read_bytes()
    tag = data.find(b"\xe0\x7f\x10\x00")
    if tag < 0 or len(data) < tag + 12:  # no such tag: deflated or big-endian, or cut where GDCM notices
        return tag < 0
    at = tag + 8 if data[tag + 4 : tag + 6] in (b"OW", b"OB") else tag + 4
    length = struct.unpack_from("<I", data, at)[0]
    return data.rfind(b"\xfe\xff\xdd\xe0") > at if length == 0xFFFFFFFF else at + 4 + length <= len(data)
