"""Tiles that threads of one process ask a network for, answered as batches."""

import threading
from concurrent.futures import Future

import numpy as np

from plateloom.devices import fit_memory


class Batches:
    """A network that threads share: what they ask for while it computes is its next batch.

    Nobody waits for a batch to fill. The network works on one batch at a time, of inputs of one shape.

    Parameters
    ----------
    run : callable(ndarray, shape (N, H, W)) -> ndarray, shape (N, …)
        The network; each of the N is as if computed alone.
    size : int
        Largest batch; halved for good when memory does not hold it.

    Attributes
    ----------
    size : int
        Largest batch by now.
    largest : int
        Largest batch that there has been.
    """

    def __init__(self, run, size):
        self.run, self.size, self.largest = run, size, 0
        self._waiting, self._lock, self._busy = [], threading.Lock(), threading.Lock()

    def __call__(self, points):
        """Run the network on one input, (H, W); returns when a batch with it has been computed."""
        answer = Future()
        with self._lock:
            self._waiting.append((points, answer))
        while not answer.done():
            with self._busy:
                if not answer.done():  # so it waits still, and whoever has the network works for others too
                    self._compute()
        return answer.result()

    def _compute(self):
        """Answer a batch of those that wait, the first of them included."""
        with self._lock:
            shape = self._waiting[0][0].shape
            chosen = [one for one in self._waiting if one[0].shape == shape][: self.size]
            answers = [answer for _, answer in chosen]
            self._waiting = [one for one in self._waiting if one[1] not in answers]
        inputs = np.stack([points for points, _ in chosen])
        try:
            pieces = lambda size: [inputs[i : i + size] for i in range(0, len(inputs), size)]  # noqa: E731
            found, fitted = fit_memory(lambda size: [self.run(piece) for piece in pieces(size)], len(inputs))
        except BaseException as error:
            for answer in answers:
                answer.set_exception(error)
            return
        if fitted < len(inputs):
            self.size = fitted
        self.largest = max(self.largest, fitted)
        for answer, result in zip(answers, np.concatenate(found), strict=True):
            answer.set_result(result)
