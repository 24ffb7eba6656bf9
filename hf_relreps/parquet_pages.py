"""What a parquet file says of its columns and pages: pyarrow allocates what they say before it reads a page.

It is read here from the bytes: an exception in pyarrow's own view of a damaged column ends the whole process. Both the
file's footer and the header of a page are structs in Thrift's compact protocol: of each field the step of its number
and its type, then its value.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


# Types of the compact protocol; maps are in no file of parquet.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET = range(1, 11)
STRUCT = 12
DEEPEST = 8  # structs and lists in structs
MAGIC = b"PAR1"  # at either end of a file
# Fields of the structs: of the file, a group of rows, a column in it, and what is said of that.
GROUPS, COLUMNS, ABOUT = 4, 1, 3
TYPE, PATH, NUM_VALUES, ALL_UNPACKED, ALL_PACKED, FIRST_PAGE, DICTIONARY_PAGE = 1, 3, 5, 6, 7, 9, 11
# Of a page's header; the headers that each kind of page has in it say in field 1 how many values it holds.
UNPACKED, PACKED, OWN_HEADERS, VALUES = 2, 3, (5, 7, 8), 1
# What a value takes as an object of Python beside its content, whatever its page has it compressed to.
TEXT, OF_OBJECT, OF_NUMBER = 6, 64, 12  # by the number of its type: BYTE_ARRAY


class Column(NamedTuple):
    """A column in a group of rows: its name, type, and sizes in bytes."""

    name: str
    type: int
    num_values: int
    unpacked: int
    packed: int
    first_page: int
    dictionary_page: int


class Page(NamedTuple):
    """What a page asks for: bytes in the file, bytes when it is unpacked, values."""

    packed: int
    unpacked: int
    values: int


def columns_in(content: bytes) -> list[Column]:
    """The columns that the footer of a file names, of all its groups of rows.

    Raises:
        ValueError: If it is no footer.
    """
    size = int.from_bytes(content[-8:-4], "little")
    if content[:4] != MAGIC or content[-4:] != MAGIC or size + 12 > len(content):
        raise ValueError("it does not begin and end as a parquet file, or was cut short")
    footer, _ = _struct(content[: len(content) - 8], len(content) - 8 - size)
    return [_column(of) for group in _list(footer, GROUPS) for of in _list(group, COLUMNS)]


def _column(found: Any) -> Column:
    about = found.get(ABOUT) if isinstance(found, dict) else None
    column = Column(
        name=b".".join(name for name in _list(about, PATH) if isinstance(name, bytes)).decode("utf-8", "replace"),
        type=_count(about, TYPE, -1),
        num_values=_count(about, NUM_VALUES, -1),
        unpacked=_count(about, ALL_UNPACKED, -1),
        packed=_count(about, ALL_PACKED, -1),
        first_page=_count(about, FIRST_PAGE, -1),
        dictionary_page=_count(about, DICTIONARY_PAGE, 0),
    )
    if min(column[1:]) < 0:
        raise ValueError(f"its footer says of a column {column}")
    return column


def refuse_immense_pages(file: Path, allowed: int) -> list[Column]:
    """Raise `ValueError` if the pages together would unpack to more than is allowed, or lie outside their columns.

    Args:
        file: The parquet file.
        allowed: Bytes.

    Returns:
        The columns.
    """
    content = file.read_bytes()
    columns = columns_in(content)
    unpacked = 0
    for column in columns:
        of_value = OF_OBJECT if column.type == TEXT else OF_NUMBER
        for page in _pages(content, column):
            unpacked += max(page.unpacked, of_value * page.values)
            if unpacked > allowed:
                raise ValueError(
                    f"the pages of its column {column.name!r:.60} would unpack to {unpacked} bytes, and {allowed} are "
                    "allowed for a file of its size"
                )
    return columns


def _pages(content: bytes, column: Column) -> list[Page]:
    starts = [column.first_page, column.dictionary_page or column.first_page]
    place = min(starts) if min(starts) > 0 else column.first_page
    end = place + column.packed
    if not 0 < place <= end <= len(content):
        raise ValueError(f"its column {column.name!r:.60} lies at {place} ... {end}, outside the file")
    pages = []
    while place < end:
        header, place = _struct(content, place)
        own: Any = next((header[name] for name in OWN_HEADERS if name in header), {})
        page = Page(_count(header, PACKED, -1), _count(header, UNPACKED, -1), _count(own, VALUES, 0))
        if min(page) < 0 or place + page.packed > end:
            raise ValueError(f"a page of its column {column.name!r:.60} says it has {page}")
        place += page.packed
        pages.append(page)
    return pages


def _count(struct: Any, field: int, default: int) -> int:
    """A number in a struct; negative, which none is, if something else stands where a number belongs."""
    value = struct.get(field, default) if isinstance(struct, dict) else -1
    return value if isinstance(value, int) else -1


def _list(struct: Any, field: int) -> list[Any]:
    value = struct.get(field, []) if isinstance(struct, dict) else []
    return value if isinstance(value, list) else []


def _struct(content: bytes, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends."""
    found: dict[int, Any] = {}
    number = 0
    while True:
        if place >= len(content) or depth > DEEPEST:
            raise ValueError("a header in it is cut short")
        step, kind = content[place] >> 4, content[place] & 15
        place += 1
        if kind == 0:
            return found, place
        if step:
            number += step
        else:
            number, place = _number(content, place, 16)
        if kind in (TRUE, FALSE):  # of a field the type is the value
            found[number] = None
        else:
            found[number], place = _value(content, place, kind, depth)


def _value(content: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind not in _READ:
        raise ValueError(f"a header in it has a field of type {kind}, which none has")
    return _READ[kind](content, place, depth)


def _values(content: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    """A list: how many values and of which type, then these."""
    if place >= len(content):
        raise ValueError("a header in it is cut short")
    size, kind = content[place] >> 4, content[place] & 15
    place += 1
    if size == 15:
        size, place = _varint(content, place)
    if size > len(content) - place:
        raise ValueError(f"a header in it has a list of {size} values, more than there are bytes")
    values = []
    for _ in range(size):
        value, place = _value(content, place, BYTE if kind in (TRUE, FALSE) else kind, depth + 1)
        values.append(value)
    return values, place


def _binary(content: bytes, place: int) -> tuple[bytes, int]:
    size, place = _varint(content, place)
    return content[place : place + size], place + size


def _number(content: bytes, place: int, bits: int) -> tuple[int, int]:
    """A number of so many bits as Thrift reads it: what is longer loses its upper bits."""
    raw, place = _varint(content, place)
    raw &= (1 << bits) - 1
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
    raise ValueError("a header in it is cut short")


_READ: dict[int, Callable[[bytes, int, int], tuple[Any, int]]] = {
    BYTE: lambda content, place, _: (None, place + 1),
    DOUBLE: lambda content, place, _: (None, place + 8),
    **dict.fromkeys((I16, I32), lambda content, place, _: _number(content, place, 32)),
    I64: lambda content, place, _: _number(content, place, 64),
    BINARY: lambda content, place, _: _binary(content, place),
    **dict.fromkeys((LIST, SET), _values),
    STRUCT: lambda content, place, depth: _struct(content, place, depth + 1),
}
