"""What ASE is told at its start: there is a format H5MD.

The entry point `ase.ioformats` in setup.cfg names this; its name there, attnh5md, makes ASE call
`read_attnh5md`.
"""

from ase.utils.plugins import ExternalIOFormat

h5md = ExternalIOFormat(
    desc="H5MD trajectory",
    code="+B",  # many frames, from a file that is open for binary reading
    module="attncalc.plugins.h5md_io",
    ext="h5md",
)
