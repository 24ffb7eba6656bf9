"""What the headers of a parquet file's pages ask for: pyarrow allocates what they say before it reads a page.

A header is a struct in Thrift's compact protocol: of each field the step of its number and its type, then its value.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Types of the compact protocol; lists and maps are in no page's header.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
# Fields of a PageHeader; the headers that each kind of page has in it say in field 1 how many values it holds.
UNPACKED, PACKED, OWN_HEADERS, VALUES = 2, 3, (5, 7, 8), 1
DEEPEST = 8  # structs in structs


class Page(NamedTuple):
    """What a page asks for: bytes in the file, bytes when it is unpacked, values."""

    packed: int
    unpacked: int
    values: int


def refuse_immense_pages(file: Path, about: pq.FileMetaData, allowed: int) -> None:
    """Raise `ValueError` if the pages together would unpack to more than is allowed, or lie outside their columns.

    Args:
        file: The parquet file.
        about: Its metadata.
        allowed: Bytes.
    """
    content = file.read_bytes()
    unpacked = 0
    for group in range(about.num_row_groups):
        for number in range(about.num_columns):
            column = about.row_group(group).column(number)
            for page in _pages(content, column):
                unpacked += page.unpacked
                if max(unpacked, 4 * page.values) > allowed:
                    raise ValueError(
                        f"the pages of its column {column.path_in_schema!r:.60} would unpack to "
                        f"{max(unpacked, 4 * page.values)} bytes, and {allowed} are allowed for a file of its size"
                    )


def _pages(content: bytes, column: Any) -> list[Page]:
    starts = [column.data_page_offset, column.dictionary_page_offset or column.data_page_offset]
    place = min(starts) if min(starts) > 0 else column.data_page_offset
    end = place + column.total_compressed_size
    if not 0 < place <= end <= len(content):
        raise ValueError(f"its column {column.path_in_schema!r:.60} lies at {place} ... {end}, outside the file")
    pages = []
    while place < end:
        header, place = _struct(content, place)
        own: Any = next((header[name] for name in OWN_HEADERS if name in header), {})
        page = Page(_count(header, PACKED, -1), _count(header, UNPACKED, -1), _count(own, VALUES, 0))
        if min(page) < 0 or place + page.packed > end:
            raise ValueError(f"a page of its column {column.path_in_schema!r:.60} says it has {page}")
        place += page.packed
        pages.append(page)
    return pages


def _count(struct: Any, field: int, default: int) -> int:
    """A number in a struct; negative, which no page has, if a struct stands where a number belongs or the reverse."""
    value = struct.get(field, default) if isinstance(struct, dict) else -1
    return value if isinstance(value, int) else -1


def _struct(content: bytes, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The whole numbers of 32 bits in a struct and the structs in it by their numbers, and where it ends."""
    found: dict[int, Any] = {}
    number = 0
    while True:
        if place >= len(content) or depth > DEEPEST:
            raise ValueError("the header of a page is cut short")
        step, kind = content[place] >> 4, content[place] & 15
        place += 1
        if kind == 0:
            return found, place
        if step:
            number += step
        else:
            number, place = _number(content, place)
        value: Any
        if kind == STRUCT:
            value, place = _struct(content, place, depth + 1)
        else:
            value, place = _plain(content, place, kind)
        if kind in (I32, STRUCT):  # others are passed over by those who expect these
            found[number] = value


def _plain(content: bytes, place: int, kind: int) -> tuple[int, int]:
    if kind in (TRUE, FALSE):
        return 0, place
    if kind in (BYTE, DOUBLE):
        return 0, place + (1 if kind == BYTE else 8)
    if kind in (I16, I32, I64):
        return _number(content, place)
    if kind == BINARY:
        size, place = _varint(content, place)
        return 0, place + size
    raise ValueError(f"the header of a page has a field of type {kind}, which no page has")


def _number(content: bytes, place: int) -> tuple[int, int]:
    """A number of 32 bits as Thrift reads it: what is longer loses its upper bits."""
    raw, place = _varint(content, place)
    raw &= 0xFFFFFFFF
    return (raw >> 1) ^ -(raw & 1), place


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            break
        value |= (content[place] & 127) << shift
        place += 1
        if content[place - 1] < 128:
            return value, place
    raise ValueError("the header of a page is cut short")
