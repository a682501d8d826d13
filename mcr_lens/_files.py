"""How is a file written, all of it or nothing?"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path to write to; at the end of the block it takes the place of `target` at once.

    A reader sees the old file or the new one, never a part; after an error the old one stays and nothing
    is left behind. What is no ordinary file (/dev/stdout, a named pipe) is written to instead of replaced.

    Raises:
        OSError: the folder cannot be written, or the target is a folder itself; the error names the target.
    """
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; name a file in it")
    stream = _is_stream(target)
    try:
        handle, name = tempfile.mkstemp(
            dir=None if stream else target.parent, prefix=f".{target.name[:40]}.", suffix=".part"
        )
    except OSError as error:
        raise _about(target, error) from None
    os.close(handle)
    part = Path(name)
    try:
        yield part
        if stream:
            with part.open("rb") as made, target.open("wb") as sink:
                shutil.copyfileobj(made, sink)
            return
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp makes private files; what is written here is an ordinary one
        part.replace(target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, name, part):
            raise
        raise _about(target, error) from None
    finally:
        part.unlink(missing_ok=True)


def _is_stream(target: Path) -> bool:
    """Whether it is there to be written to and not to be replaced: a device, a pipe, a socket."""
    return target.exists() and (not target.is_file() or target.absolute().is_relative_to("/dev"))


def _about(target: Path, error: OSError) -> OSError:
    """The same error, of the file that was asked for and not of the temporary one."""
    return OSError(error.errno, error.strerror, str(target))
