"""Everything the library raises on purpose. A message names what it got, what it takes, and the remedy."""

from __future__ import annotations


class KitsCascadeError(Exception):
    """Root of all errors that a user can do something about; the command line prints its message and exits."""

    exit_code = 2


class UsageError(KitsCascadeError):
    """Options that do not go together, or name what is not there."""


class EnvironmentNotReadyError(KitsCascadeError):
    """A folder variable, an optional package or a device is missing."""


class MissingExtraError(EnvironmentNotReadyError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; it comes with: pip install 'kits-cascade[{extra}]' (or '.[{extra}]')"
        )


class FileFormatError(KitsCascadeError):
    """A file that cannot be read as what it should be."""


class GeometryError(KitsCascadeError):
    """Shapes, spacings or affines that do not fit together."""


class DatasetError(KitsCascadeError):
    """A dataset that is missing, incomplete, or would be overwritten."""


class ModelError(KitsCascadeError):
    """A trained model that is missing, ambiguous or not to be trusted."""


class CaseError(KitsCascadeError):
    """One case cannot be worked on; the others go on."""

    exit_code = 1

    def __init__(self, case: str, reason: str) -> None:
        super().__init__(f"{case}: {reason}")
        self.case = case
        self.reason = reason
