"""Files: written whole or not at all, read without following links to others."""

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
