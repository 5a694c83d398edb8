"""Check of a torch checkpoint's archive and pickle before torch reads it: what it says it holds, it holds.

torch maps the file and believes the pickle, which says where each storage lies and how many items it has: a
shorter entry is read beyond its end. It does not compare checksums either, and what it unpickles may be small
in the file and unbounded in memory or time: tuples of tuples that share their parts take 2ⁿ steps to hash,
`bytearray(10**11)` is two dozen bytes, keys can be made to collide, and some text encodings are quadratic.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from satclip_engine.errors import WeightsError, one_line

_MAX_TUPLE_PARTS: Final = 100_000  # of tuples within tuples, each counted as often as it is met
_MAX_PICKLE_BYTES: Final = 64_000_000  # released checkpoints take 0.1 MB, those with optimizer states 1 MB
_MAX_OPCODES: Final = 500_000  # a second; released checkpoints have 3000, optimizer states 100 a tensor
_MAX_STRANGE_KEYS: Final = 1000  # of dictionaries and sets: neither text nor a number of 64 bits
_MAX_COLLECTIONS: Final = 100  # sets and the like that are made of a list
_LEGACY_PICKLES: Final = 5  # before the storages of a file of torch < 1.6
# Bytes of an item of each class of storages.
_ITEM_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("UntypedStorage", "ByteStorage", "CharStorage", "BoolStorage"), 1),
    **dict.fromkeys(("QInt8Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
_BYTES: Final = ("_codecs encode", "builtins bytearray", "__builtin__ bytearray")  # made of text in Latin-1
_COLLECTIONS: Final = ("builtins set", "__builtin__ set", "collections Counter", "collections OrderedDict")
# What torch writes for tensors, their sizes and devices; the rest that its own reader allows makes copies.
_REBUILT: Final = (
    *("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"),
    *("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor"),
    *("torch._utils _rebuild_nested_tensor", "torch._utils _rebuild_meta_tensor_no_storage"),
    *("torch.nn.parameter Parameter", "torch.serialization _get_layout", "torch Size", "torch device"),
)
_REBUILT_SUBCLASS: Final = "torch._tensor _rebuild_from_type_v2"
_TUPLES: Final = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE")
_READ_BYTES: Final = 1 << 20


def check_archive(path: Path, where: str) -> bool:
    """True for a zip archive (torch ≥ 1.6). Raises WeightsError for a damaged, false or hostile file."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                _check_legacy(file, where)
            return False
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), path.stat().st_size, where)
            _check_sums(archive)
            _check_storages(archive, where)
    except (WeightsError, OSError):
        raise
    except Exception as error:  # zipfile has a dozen kinds for the ways in which an archive can be damaged
        raise WeightsError(f"{where}: damaged ({one_line(error)})") from error
    return True


def _check_members(members: list[zipfile.ZipInfo], size: int, where: str) -> None:
    """Refuse an archive that unpacks to more than it holds, or that readers could understand differently."""
    unpacked = sum(member.file_size for member in members)
    if unpacked > size:
        raise WeightsError(f"{where}: refused: its parts unpack to {unpacked} bytes, the file has {size}")
    names = set()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise WeightsError(
                f"{where}: refused: its part {member.filename} is compressed; torch stores parts as they are"
            )
        if member.filename.lower() in names:  # torch's reader does not tell cases apart
            raise WeightsError(f"{where}: refused: it has several parts named {member.filename}")
        names.add(member.filename.lower())


def _check_sums(archive: zipfile.ZipFile) -> None:
    """Compare checksums; torch ignores them, so a flipped bit would become a wrong weight."""
    for member in archive.infolist():
        if member.CRC:  # torch can be told to leave them out; they are zero then
            with archive.open(member) as content:
                while content.read(_READ_BYTES):
                    pass


def _check_storages(archive: zipfile.ZipFile, where: str) -> None:
    """Refuse storages that are longer than their parts of the archive."""
    root = archive.infolist()[0].filename.partition("/")[0]
    pickle = archive.getinfo(f"{root}/data.pkl")
    if pickle.file_size > _MAX_PICKLE_BYTES:
        raise WeightsError(
            f"{where}: refused: its pickle has {pickle.file_size} bytes, at most {_MAX_PICKLE_BYTES} are read"
        )
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    for value in persistent_ids(io.BytesIO(archive.read(pickle)), where):
        kind, key, items = _storage(value, where)
        needed, stored = items * _ITEM_BYTES[kind], sizes.get(f"{root}/data/{key}", 0)
        if needed > stored:
            raise WeightsError(
                f"{where}: damaged: {items} items of {kind} take {needed} bytes, "
                f"its part {root}/data/{key} has {stored}"
            )


def _check_legacy(file: BinaryIO, where: str) -> None:
    """Check the pickles of a file of torch < 1.6, as far as it has any; what else is wrong, torch says."""
    try:
        for _ in range(_LEGACY_PICKLES):
            for _ in persistent_ids(file, where):
                pass
    except WeightsError:
        raise
    except Exception:
        return


class _Tuple:
    """A tuple of a pickle: its parts, and how many there are with those of its own tuples."""

    def __init__(self, parts: list[Any], where: str) -> None:
        self.parts = parts
        self.count: int = 1 + sum(value.count if isinstance(value, _Tuple) else 1 for value in parts)
        if self.count > _MAX_TUPLE_PARTS:
            raise WeightsError(f"{where}: refused: its pickle has tuples within tuples without end")


_MARK: Final = object()
_DICTIONARY: Final = object()
_BYTES_VALUE: Final = object()


class _Limits:
    """Bounds of what a pickle may ask for, counted while it is followed."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._opcodes = self._collections = self._strange_keys = self._strange_items = 0

    def count(self) -> None:
        """Count an opcode. Raises WeightsError."""
        self._opcodes += 1
        self._bound(self._opcodes, _MAX_OPCODES, "instructions")

    def check(self, name: str, parts: list[Any]) -> None:
        """Check what an opcode takes from the stack. Raises WeightsError."""
        if name in ("SETITEM", "SETITEMS", "DICT"):
            self._strange_keys += sum(map(_is_strange, parts[name != "DICT" :: 2]))
            self._bound(self._strange_keys, _MAX_STRANGE_KEYS, "keys that are neither text nor numbers")
        elif name in ("APPEND", "APPENDS", "LIST"):
            self._strange_items += sum(map(_is_strange, parts))
        elif name in ("REDUCE", "NEWOBJ"):
            self._check_call(*parts)

    def _check_call(self, function: Any, arguments: Any) -> None:
        values = arguments.parts if isinstance(arguments, _Tuple) else [None]
        if function == _REBUILT_SUBCLASS and len(values) == 4:  # function, class, its arguments, attributes
            self._check_call(values[0], values[2])
        elif isinstance(function, str) and function.startswith("torch") and function not in _REBUILT:
            raise WeightsError(
                f"{self._where}: refused: its pickle asks for {'.'.join(function.split())}, which is no "
                "tensor or plain value (nothing was executed); save it again without that object"
            )
        elif function in _BYTES and values and not _is_latin1(values):
            raise WeightsError(f"{self._where}: refused: its pickle makes bytes of something else than text")
        elif function in _COLLECTIONS and values and values[0] is not _DICTIONARY:
            self._collections += 1
            self._bound(self._collections, _MAX_COLLECTIONS, "sets and the like")
            count = arguments.count if isinstance(arguments, _Tuple) else 1
            things = "members of sets that are neither text nor numbers"
            self._bound(self._strange_items + count, _MAX_STRANGE_KEYS, things)

    def _bound(self, count: int, most: int, things: str) -> None:
        if count > most:
            raise WeightsError(f"{self._where}: refused: its pickle has more than {most} {things}")


def _is_strange(key: Any) -> bool:
    """True for keys of which many can have one hash."""
    return not isinstance(key, str) and not (isinstance(key, int) and key.bit_length() <= 64)


def _is_latin1(arguments: list[Any]) -> bool:
    """True for what makes bytes of text in Latin-1, as pickles have them, or a copy of such bytes."""
    if len(arguments) == 1:
        return arguments[0] is _BYTES_VALUE
    return [type(value) for value in arguments] == [str, str] and arguments[1] in ("latin1", "latin-1")


def persistent_ids(file: BinaryIO, where: str) -> Iterable[Any]:
    """Names that a pickle has for what lies outside it: torch's storages. Executes nothing.

    The pickle's machine is followed as far as tuples, texts and numbers go; everything else is one value.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    limits = _Limits(where)
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        limits.count()
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            parts = _popped(stack, [item.name for item in opcode.stack_before])
            limits.check(name, parts)
            if name == "BINPERSID":
                yield parts[0]
            stack.extend(_result(name, argument, parts, where) for _ in opcode.stack_after)


def _popped(stack: list[Any], kinds: list[str]) -> list[Any]:
    """Values that an opcode takes from the stack: those above the last mark, and one for each other kind."""
    parts: list[Any] = []
    if "stackslice" in kinds:
        while (value := stack.pop()) is not _MARK:
            parts.append(value)
        kinds = [kind for kind in kinds if kind not in ("mark", "stackslice", "any")]
    parts.extend(stack.pop() for _ in kinds)
    return parts[::-1]


def _result(name: str, argument: Any, parts: list[Any], where: str) -> Any:
    if name in _TUPLES:
        return _Tuple(parts, where)
    if name == "STACK_GLOBAL":
        return " ".join(map(str, parts))
    if name == "DUP":
        return parts[0]
    if name in ("SETITEM", "SETITEMS"):
        return parts[0]
    if name in ("DICT", "EMPTY_DICT"):
        return _DICTIONARY
    if name == "REDUCE" and parts[0] == "_codecs encode":
        return _BYTES_VALUE
    return argument


def _storage(value: Any, where: str) -> tuple[str, str, int]:
    """Class, key and number of items of a storage: ("storage", class, key, device, items)."""
    parts = value.parts if isinstance(value, _Tuple) else []
    if len(parts) != 5 or not isinstance(parts[1], str) or not isinstance(parts[2], str):
        raise WeightsError(f"{where}: damaged: its pickle names a storage that torch does not write")
    kind, items = parts[1].rpartition(" ")[2], parts[4]
    if kind not in _ITEM_BYTES or isinstance(items, bool) or not isinstance(items, int) or items < 0:
        raise WeightsError(f"{where}: damaged: its pickle names {str(items)[:20]} items of {parts[1][:40]}")
    return kind, parts[2], items
