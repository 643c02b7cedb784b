"""Statuses of the library, as exceptions."""
import enum

from . import _abi


class Status(enum.IntEnum):
    """What a call of the library returns; `Error.status` has one of these numbers."""

    OK = _abi.SKC_STATUS_OK
    INVALID_HANDLE = _abi.SKC_STATUS_INVALID_HANDLE
    NULL_POINTER = _abi.SKC_STATUS_NULL_POINTER
    INVALID_ARGUMENT = _abi.SKC_STATUS_INVALID_ARGUMENT
    INVALID_CONFIG = _abi.SKC_STATUS_INVALID_CONFIG
    OUT_OF_RANGE = _abi.SKC_STATUS_OUT_OF_RANGE
    VERSION_MISMATCH = _abi.SKC_STATUS_VERSION_MISMATCH
    BACKEND_UNAVAILABLE = _abi.SKC_STATUS_BACKEND_UNAVAILABLE
    OUT_OF_MEMORY = _abi.SKC_STATUS_OUT_OF_MEMORY
    BUSY = _abi.SKC_STATUS_BUSY
    LAYERS_OUT_OF_STEP = _abi.SKC_STATUS_LAYERS_OUT_OF_STEP
    CHUNK_TOO_LONG = _abi.SKC_STATUS_CHUNK_TOO_LONG
    TOKENS_GONE = _abi.SKC_STATUS_TOKENS_GONE
    DEVICE_LOST = _abi.SKC_STATUS_DEVICE_LOST
    INTERNAL = _abi.SKC_STATUS_INTERNAL
    LENGTH_UNKNOWN = _abi.SKC_STATUS_LENGTH_UNKNOWN
    INVALID_SNAPSHOT = _abi.SKC_STATUS_INVALID_SNAPSHOT
    NO_ROOM = _abi.SKC_STATUS_NO_ROOM


class Error(RuntimeError):
    """A call that failed, or an argument that this package rejected. The text names the value and what is allowed.

    `status` is a `Status`, or a plain number that only a later version of the library has. The cache is unchanged.
    """

    def __init__(self, status: int, text: str) -> None:
        self.status: int = Status(status) if status in Status._value2member_map_ else status
        super().__init__(text)

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (int(self.status), str(self))


class InvalidHandleError(Error):
    """The cache is closed."""


class InvalidArgumentError(Error, ValueError):
    """An argument is not allowed, by itself or for this cache."""


class InvalidConfigError(Error, ValueError):
    """A setting of a cache is not allowed."""


class OutOfRangeError(Error, IndexError):
    """A layer, sequence, token count or position does not exist, or exceeds what the cache holds."""


class BackendUnavailableError(Error):
    """No driver, no device, or neither a compiler nor built-in kernels for it."""


class OutOfMemoryError(Error, MemoryError):
    """An allocation failed."""


class BusyError(Error):
    """Another thread is using the cache."""


class LayersOutOfStepError(Error):
    """The edit needs all layers at one length: finish the step, or call abort_step."""


class ChunkTooLongError(Error, ValueError):
    """More tokens of one sequence in one append than max_chunk."""


class TokensGoneError(Error):
    """Tokens that would become visible have been overwritten or evicted."""


class DeviceLostError(Error):
    """The CUDA device failed: close the cache."""


class LengthUnknownError(Error):
    """Replays of a CUDA graph have changed the sequence's length: note_replay, reset, or info(read_back=True)."""


class InvalidSnapshotError(Error, ValueError):
    """The bytes are not a snapshot that this cache can load."""


class NoRoomError(Error):
    """More pinned tokens than max_pinned, or more segments than max_segments."""


_CLASSES: dict[int, type[Error]] = {
    Status.INVALID_HANDLE: InvalidHandleError,
    Status.INVALID_ARGUMENT: InvalidArgumentError,
    Status.INVALID_CONFIG: InvalidConfigError,
    Status.OUT_OF_RANGE: OutOfRangeError,
    Status.BACKEND_UNAVAILABLE: BackendUnavailableError,
    Status.OUT_OF_MEMORY: OutOfMemoryError,
    Status.BUSY: BusyError,
    Status.LAYERS_OUT_OF_STEP: LayersOutOfStepError,
    Status.CHUNK_TOO_LONG: ChunkTooLongError,
    Status.TOKENS_GONE: TokensGoneError,
    Status.DEVICE_LOST: DeviceLostError,
    Status.LENGTH_UNKNOWN: LengthUnknownError,
    Status.INVALID_SNAPSHOT: InvalidSnapshotError,
    Status.NO_ROOM: NoRoomError,
}


def error(status: int, text: str) -> Error:
    """The exception of a status. The rest, such as INTERNAL, is a plain Error."""
    return _CLASSES.get(status, Error)(status, text)
