"""Memory that nobody uses: when Python looks for it, and how it goes back to the machine."""

import ctypes
import gc


def give_back() -> None:
    """Return freed memory to the machine, where the C library can; takes milliseconds.

    glibc keeps what was freed in pieces: opening a version and closing the one before left about
    10 MB in its arenas each time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def settle() -> None:
    """What is there now stays: Python shall not look through it again for what can be freed.

    All the libraries' objects are some 70,000, and a look at them held the event loop for 25 ms.
    """
    gc.collect()
    gc.freeze()
