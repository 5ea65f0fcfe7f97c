"""The processes or the cluster that a command of the command line runs on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro_zilognormal.singlecell.errors import SingleCellError
from pyro_zilognormal.sufficient.dask import require

_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"
_CONFIG: dict[str, Any] = {
    # Dask has workers return the memory of each array to the system, which clears it anew for the next: nearly twice
    # the time of the processors. With these limits they keep up to 256 MB.
    f"{_ENVIRONMENT}.MALLOC_TRIM_THRESHOLD_": 1 << 28,
    f"{_ENVIRONMENT}.MALLOC_MMAP_THRESHOLD_": 1 << 26,
    # Errors come to this process: theirs are no news.
    f"{_ENVIRONMENT}.DASK_LOGGING__DISTRIBUTED": "critical",
    # Neighbouring blocks go to the same worker, which adds up their statistics without a transfer. Dask's default keeps
    # blocks back, lest their results fill the memory; ours are a few MB, and are added up before the next are read.
    "distributed.scheduler.worker-saturation": "inf",
}


@contextmanager
def cluster(workers: int | None, address: str | None) -> Iterator[None]:
    """Let Dask compute in `workers` processes of this machine, or on the cluster whose scheduler has this address."""
    if workers is None and address is None:
        yield
        return
    distributed = require("distributed")
    with ExitStack() as stack:
        if workers is not None:
            address = stack.enter_context(local_cluster(workers)).scheduler_address
        try:
            stack.enter_context(distributed.Client(address))
        except ValueError as error:
            raise SingleCellError(f"cluster: {address!r} is no address ({error}); needed tcp://HOST:PORT") from error
        try:
            yield
        except distributed.KilledWorker as error:
            raise ChildProcessError(
                "cluster: several workers died over the same cells, most likely for lack of memory; use fewer "
                f"--workers, or workers with more memory ({error})"
            ) from error
        except CancelledError as error:
            raise ConnectionError(f"cluster: the connection to {address} was lost ({error}); run it again") from error


def local_cluster(workers: int) -> Any:
    """Start processes of one thread each, which listen to this machine alone."""
    distributed = require("distributed")
    with require("dask").config.set(_CONFIG):
        # Dask's usual port of the dashboard may be in use.
        return distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
