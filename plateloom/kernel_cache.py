"""Compiled kernels on disk, in files that many jobs may write at once and that no job relies on.

numba's own cache numbers the files of a kernel in an index that every job rewrites. Jobs that begin together with other
types, or on other processors, choose the same number, and the index of the one then names the code of the other; and a
file cut short, or no folder to write to, ends the job. Here the name of a file says for what it was compiled,
its content from what, and what is not whole is compiled anew. Of jobs that begin together one compiles a kernel, and the
others wait for it, unless it takes too long.
"""

import contextlib
import hashlib
import time
from pathlib import Path

from numba.core.caching import FunctionCache, IndexDataCacheFile

_CHECKSUM_SIZE = hashlib.sha256().digest_size
_PATIENCE = 30.0  # [s] to wait for another job, which may have died


class KernelCache(FunctionCache):
    """Cache of one kernel, in numba's folders (``NUMBA_CACHE_DIR``, else beside the source, else the user's).

    Parameters
    ----------
    function : callable
    stamp : tuple
        What tells the function's source from another version of it.
    """

    def __init__(self, function, stamp):
        super().__init__(function)
        self._cache_file = _KernelFiles(self._cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig, data):
        """Save what was compiled, unless that fails: it costs the next job a compilation, not this one its result."""
        try:
            with contextlib.suppress(OSError):
                super().save_overload(sig, data)
        finally:
            self._cache_file.release(self._index_key(sig, data.codegen))


class _KernelFiles(IndexDataCacheFile):
    """One file per kernel, types and processor: numba's pickle of what it is and the code, then a checksum."""

    def load(self, key):
        """Return what was saved for a key; None if there is nothing, or nothing whole and current: it is to be compiled here.

        Where another job compiles it, this one waits.
        """
        found = self._read(key)
        if found is None and not self._claim(key):
            ends = time.monotonic() + _PATIENCE
            while time.monotonic() < ends and self._is_claimed(key):
                time.sleep(0.05)
            found = self._read(key)
        return found

    def release(self, key):
        """Let other jobs know that this one compiles nothing for a key any more."""
        with contextlib.suppress(OSError):
            self._claim_path(key).unlink()

    def _claim(self, key):
        """Say that this job compiles for a key, unless another one has said so."""
        path = self._claim_path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("x").close()
        except FileExistsError:
            return False
        except OSError:  # nobody can say it there
            return True
        return True

    def _is_claimed(self, key):
        try:
            return time.time() - self._claim_path(key).stat().st_mtime < _PATIENCE
        except OSError:
            return False

    def _claim_path(self, key):
        return self._path(key).with_suffix(".compiling")

    def _read(self, key):
        path = self._path(key)
        try:
            stored = path.read_bytes()
            if hashlib.sha256(stored[:-_CHECKSUM_SIZE]).digest() != stored[-_CHECKSUM_SIZE:]:
                return None
            identity, code = self._load_data(path.name)
        except OSError:
            return None
        return code if identity == self._identify(key) else None

    def save(self, key, data):
        """Save one entry; a reader sees all of it or nothing."""
        stored = self._dump((self._identify(key), data))
        with self._open_for_write(str(self._path(key))) as file:
            file.write(stored + hashlib.sha256(stored).digest())

    def _path(self, key):
        # The source is not part of the name, so that files of an older version are written over.
        types, processor, _ = key
        target = hashlib.sha256(repr((self._version, types, processor)).encode()).hexdigest()[:16]
        return Path(self._data_path(self._index_name.replace(".nbi", f".{target}.nbc")))

    def _identify(self, key):
        return repr((self._version, self._source_stamp, key))
