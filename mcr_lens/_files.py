"""How is a file written, all of it or nothing?"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path to write to; at the end of the block it takes the place of `target` at once.

    A reader sees the old file or the new one, never a part; after an error the old one stays and nothing
    is left behind.

    Raises:
        OSError: the folder cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp makes private files; what is written here is an ordinary one
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
