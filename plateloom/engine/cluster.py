"""The Dask cluster of one job, and a loop that keeps a bounded number of tasks in flight on it."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

KINDS = ("processes", "threads", "address", "slurm")
REMOTE = ("address", "slurm")  # workers that may be on other nodes, and come and go
BARE_MB = 150  # what a worker process has imported before its first task [MB]
AGAIN = 5.0  # [s] after which the number of such workers is asked for again


@dataclasses.dataclass
class Cluster:
    """An open cluster and what was seen of it.

    Attributes
    ----------
    connect : callable() -> distributed.Client
    kind : str
    tasks_per_worker : int
    share_mb : int
        Memory of a worker process, beyond which it is killed [MB]; 0 where nothing watches it.
    workers : list of str
        Addresses of the workers that took part; of those that are Slurm jobs, with node and job.
    tasks, peak_in_flight : int
        Tasks run, and the highest number submitted but not yet finished.
    worker_peak_mb : int
        Highest resident memory of a worker process [MB].
    """

    _limit = None  # when it was asked for, and what it was then
    connect: Callable
    kind: str
    tasks_per_worker: int
    share_mb: int = 0
    workers: list = dataclasses.field(default_factory=list)
    tasks: int = 0
    peak_in_flight: int = 0
    worker_peak_mb: int = 0

    @functools.cached_property
    def client(self):
        """The client; the cluster is only started when the first task needs it."""
        return self.connect()

    @property
    def limit(self):
        """Tasks in flight at most; it grows with workers that join later."""
        now = time.monotonic()
        if self._limit is None or (self.kind in REMOTE and now - self._limit[0] > AGAIN):
            self._limit = now, max(1, sum(self.client.nthreads().values())) * self.tasks_per_worker
        return self._limit[1]

    def run(self, units, *, finished):
        """Run generators of task lists side by side, with at most `limit` tasks in flight over all of them.

        Parameters
        ----------
        units : iterable of (name, generator)
            A generator yields iterables of ``(function, argument, …)``, is sent the list of their results in order,
            and returns what `finished` is given. An exception in a task ends the run.
        finished : callable(name, value)
            Called here, in the job's process, as soon as a generator has returned.
        """
        from distributed import KilledWorker, as_completed

        waiting = iter(units)
        open_units = collections.deque()  # units that have tasks left to submit
        owners = {}  # future key -> (unit, position)
        queue = None

        def advance(unit, results):
            try:
                unit.tasks = iter(unit.generator.send(results))
                unit.results, unit.left, unit.drained = {}, 0, False
                open_units.append(unit)
            except StopIteration as stop:
                finished(unit.name, stop.value)

        def close_if_done(unit):
            if unit.drained and not unit.left:
                advance(unit, [unit.results[i] for i in range(len(unit.results))])

        def submit_one():
            """Submit the next task of any unit; False where none is left, or enough are in flight."""
            nonlocal queue
            while True:
                if not open_units:
                    following = next(waiting, None)
                    if following is None:
                        return False
                    advance(_Unit(*following), None)
                    continue
                unit = open_units[0]
                task = next(unit.tasks, None)
                if task is None:
                    unit.drained = True
                    open_units.popleft()
                    close_if_done(unit)
                    continue
                if len(owners) >= self.limit:
                    unit.tasks = itertools.chain([task], unit.tasks)
                    return False
                future = self.client.submit(_Result.of, *task, pure=False)
                position = len(unit.results)
                unit.results[position] = None
                unit.left += 1
                owners[future.key] = (unit, position)
                if queue is None:
                    queue = as_completed(loop=self.client.loop, raise_errors=False)
                queue.add(future)
                self.tasks += 1
                self.peak_in_flight = max(self.peak_in_flight, len(owners))
                return True

        while True:
            while submit_one():
                pass
            if not owners:
                return
            future = next(queue)
            unit, position = owners.pop(future.key)
            try:
                unit.results[position] = future.result().value  # raises what the task raised
            except KilledWorker as error:
                share = f", which has {self.share_mb} MB," if self.share_mb else ""
                raise MemoryError(
                    f"worker after worker{share} has died over the same piece of work: give the job more memory (mem_mb) or fewer "
                    "threads, or find out what kills its processes"
                ) from error
            unit.left -= 1
            del future
            close_if_done(unit)

    def observe(self):
        """Ask the workers, if there are any, for what they are and their peak memory."""
        if "client" not in self.__dict__:
            return
        found = self.client.run(describe_worker)
        names = {f"{address}{where if self.kind == 'slurm' else ''}" for address, (where, _) in found.items()}
        self.workers = sorted(set(self.workers) | names)
        self.worker_peak_mb = max([self.worker_peak_mb, *(peak for _, peak in found.values())])


class _Result:
    """What a task returns. Of a bare table Dask asks each column for its size, more than once, before it is sent: of thousands of
    columns that takes a third of the time of measuring the cells."""

    def __init__(self, value):
        self.value = value

    @classmethod
    def of(cls, function, *arguments):
        return cls(function(*arguments))


class _Unit:
    def __init__(self, name, generator):
        self.name, self.generator = name, generator


@contextlib.contextmanager
def open_cluster(*, threads, kind="processes", tasks_per_worker=2, memory_mb=None, address=None, slurm=None):
    """Open the cluster of a job and close it in the end.

    Parameters
    ----------
    threads : int
        Cores of this job: so many workers.
    kind : {'processes', 'threads', 'address', 'slurm'}
        Worker processes of this job (default), threads in its own process, a running scheduler, or workers that are
        Slurm jobs of their own.
    tasks_per_worker : int
        Tasks in flight per worker; bounds memory.
    memory_mb : int, optional
        Memory of the whole job [MB], shared out to its worker processes.
    address : str, optional
        Of the scheduler, e.g. ``tcp://node7:8786``, for kind 'address'.
    slurm : dict, optional
        Arguments of `dask_jobqueue.SLURMCluster` and `jobs`, the number of workers, for kind 'slurm'.

    Yields
    ------
    Cluster
    """
    import dask
    from distributed import Client, LocalCluster

    # Of worker processes, which import zarr after this: each has one core, and zarr would start a thread per core.
    single = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    for name in (*single, "ZARR_THREADING__MAX_WORKERS"):
        os.environ.setdefault(name, "1")
    settings = {"distributed.worker.daemon": True, "distributed.admin.tick.limit": "1h"}
    # A worker that is paused for its memory would never go on: what it holds is no result that could be spilled. One that
    # needs more than its share is killed, which ends the job after some tries.
    settings |= {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
    share_mb = int(memory_mb / threads) if memory_mb and kind == "processes" else 0
    with dask.config.set(settings), contextlib.ExitStack() as stack:

        def connect():
            if kind == "address":
                return stack.enter_context(Client(address))
            if kind == "slurm":
                from dask_jobqueue import SLURMCluster

                options = dict(slurm or {})
                jobs = options.pop("jobs", 1)
                cluster = stack.enter_context(SLURMCluster(**options))
                cluster.scale(jobs=jobs)
                client = stack.enter_context(Client(cluster))
                client.wait_for_workers(1, timeout=600)
                return client
            processes = kind == "processes"
            if share_mb:
                _refuse_too_little(memory_mb, threads)
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=threads if processes else 1,
                    threads_per_worker=1 if processes else threads,
                    processes=processes,
                    memory_limit=int(share_mb * 1e6),
                    host="127.0.0.1" if processes else None,
                    dashboard_address="127.0.0.1:0",  # any port: several jobs share a node
                    silence_logs=logging.CRITICAL,  # what matters is raised here; a worker that outlives its scheduler is no news
                )
            )
            return stack.enter_context(Client(cluster, direct_to_workers=True))

        yield Cluster(connect, kind, tasks_per_worker, share_mb)


def _refuse_too_little(memory_mb, threads):
    """Refuse a share of memory that no worker could begin with: it would be killed and started again for ever."""
    needed = int(1.2 * min(peak_memory_mb(), BARE_MB) * threads)
    if memory_mb < needed:
        raise MemoryError(
            f"{memory_mb} MB for {threads} workers: they need {needed} MB before they have done anything; give the job more "
            "(mem_mb), or fewer threads"
        )


def describe_worker():
    """Where this process runs, for the record of a job, and its highest resident memory [MB]."""
    return f" on {socket.gethostname()}, Slurm job {os.environ.get('SLURM_JOB_ID', '?')}", peak_memory_mb()


def peak_memory_mb():
    """Highest resident memory of this process so far [MB].

    From /proc: what `getrusage` says of a process includes the one that it was forked from.
    """
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))
