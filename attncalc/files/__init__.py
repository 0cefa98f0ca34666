"""Files: written whole or not at all, read without leading anywhere else."""

from attncalc.files.writing import (
    Appended,
    Claim,
    NoSpaceLeft,
    folder_to_disk,
    lock,
    naming_full_disk,
    refuse_existing,
    remove_abandoned,
    replacing,
    write_atomically,
)
