"""Model files: had, whole and right, or not."""

from __future__ import annotations

from modelyard.errors.base import StoreError


class SourceNotFound(StoreError):
    """The source of a file does not exist, or has no such file."""

    code = "source_not_found"


class SourceForbidden(StoreError):
    """The source of a file gives it only to those who may have it: a licence to accept, or a token to set."""

    code = "source_forbidden"


class SourceOffline(StoreError):
    """A file is not on this machine, and `HF_HUB_OFFLINE` forbids to fetch it."""

    code = "source_offline"


class DownloadFailed(StoreError):
    """A file could not be fetched; what has come of it is kept apart, and the next try goes on from there."""

    code = "download_failed"
    retryable = True


class ChecksumMismatch(StoreError):
    """A file is not the one that was asked for, and is not used; one that was fetched was set aside."""

    code = "checksum_mismatch"


class BadGguf(StoreError):
    """The file is not a GGUF file that can be read; the message says where it goes wrong."""

    code = "bad_gguf"


class BadFile(StoreError):
    """The file is not what a model's file has to be, or not all of it, and is not used; one that was fetched
    was set aside."""

    code = "bad_file"


class QuantizeFailed(StoreError):
    """A file could not be quantized; the message says what the tool said."""

    code = "quantize_failed"


class ConversionFailed(StoreError):
    """A folder could not be converted for its engine; the message says why."""

    code = "conversion_failed"


class DiskFull(StoreError):
    """There is no room for a file."""

    code = "disk_full"
