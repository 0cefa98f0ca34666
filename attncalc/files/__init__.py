"""Files: atomic writing, locks, and reading without following links to other files."""

from attncalc.files.file_lock import FileLock, lock
from attncalc.files.writing import (
    Appended,
    NoSpaceLeft,
    folder_to_disk,
    naming_full_disk,
    refuse_existing,
    remove_abandoned,
    replacing,
    write_atomically,
)
