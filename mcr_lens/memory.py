"""Was it too little memory that stopped a computation, and how is there more of it afterwards?"""

import gc
import re

import torch

from mcr_lens._checks import first_line


class OutOfMemoryWarning(UserWarning):
    """A batch did not fit in memory, was dropped, and ran again in smaller ones."""


WORDS = (
    "out of memory",  # CUDA, its driver, MPS
    "can't allocate memory",  # torch on a processor: Linux, macOS
    "not enough memory",  # torch on a processor: Windows
    "bad_alloc",
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)
"""By these, errors without a class of their own say that memory was too small."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less of everything could have gone through.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    True
    >>> is_out_of_memory(RuntimeError("shapes do not fit"))
    False

    Source: this library.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def release() -> None:
    """Give back what is no longer used; call it when no traceback holds the tensors any more.

    Source: this library.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_short(error: BaseException) -> str:
    """How much could not be had, or the first line of what the error says.

    >>> in_short(RuntimeError("DefaultCPUAllocator: you tried to allocate 12 bytes. Error code 12"))
    '12 bytes could not be allocated'

    Source: this library.
    """
    asked = re.search(r"llocate ([\d.]+) ?([KMGT]iB|bytes)", str(error))
    if asked is not None:
        return f"{asked[1]} {asked[2]} could not be allocated"
    return first_line(error)


def too_large_for_one(n_tokens: int, what: str, *, served: bool) -> MemoryError:
    """What is to be said when not even one prompt fits, of a model that is measured as it is served or not.

    Source: this library.
    """
    instead = "" if served else " or with mcr_lens.serve, whose memory is linear in the length"
    return MemoryError(
        f"a single prompt of {n_tokens} tokens does not fit in memory ({what}): shorten it, cut it with "
        f"max_length, or load the model in bfloat16{instead}"
    )


def told(what: str, before: int, after: int) -> str:
    """What is to be said when a batch did not fit, and smaller ones are tried.

    Source: this library.
    """
    return (
        f"a batch of {before} prompts did not fit in memory ({what}); it runs again, and from now on at most "
        f"{after} run together: pass batch_size={after} to begin so"
    )
