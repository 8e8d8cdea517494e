"""Which device a network computes on, and how much of a batch its memory holds."""

import logging
import time

log = logging.getLogger(__name__)

PAUSES = (0.0, 2.0, 10.0)  # [s] before another try of what did not fit alone: others may share the GPU, and be done


def choose_device(policy):
    """The device to compute on.

    Parameters
    ----------
    policy : {'require', 'prefer', 'cpu'}

    Returns
    -------
    str
        "cuda" or "cpu".

    Raises
    ------
    RuntimeError
        If a GPU is required and there is none.
    """
    import torch

    if policy != "cpu" and torch.cuda.is_available():
        return "cuda"
    if policy == "require":
        raise RuntimeError("engine.device is `require`, but torch sees no GPU here")
    return "cpu"


def has_gpu(policy):
    """Whether this process may use a GPU, and sees one.

    Parameters
    ----------
    policy : {'require', 'prefer', 'cpu'}
    """
    if policy == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


def fit_memory(work, size, *, pauses=None):
    """Work with as large a batch as the device's memory holds: halved as long as it does not.

    Parameters
    ----------
    work : callable(int)
        Called with the size of a batch; may be called again, and then does all of its work again.
    size : int
        To begin with.
    pauses : sequence of float, optional
        [s] before each further try of a batch of one; default: `PAUSES`.

    Returns
    -------
    result
        What `work` returned.
    size : int
        What it was called with then.

    Raises
    ------
    MemoryError
        If a batch of one does not fit either.
    """
    import torch

    waits = iter(PAUSES if pauses is None else pauses)
    while True:
        try:
            return work(size), size
        except torch.OutOfMemoryError as error:
            said = " ".join(str(error).split())[:300]
        # Only here has the failed call let go of what it held.
        if size > 1:
            size //= 2
            log.warning("out of the GPU's memory; going on with batches of %d", size)
        else:
            wait = next(waits, None)
            if wait is None:
                raise MemoryError(
                    f"the GPU's memory does not hold a single tile ({said}). Lower engine.tile_px, let fewer jobs and workers "
                    "share the GPU (--set-threads segment_plate=1), or set engine.device: cpu"
                )
            time.sleep(wait)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
