"""Which machines of a cluster train, and which are put aside because trials fail there through no fault
of the trials.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import ray

MAX_FAULTS = 3
"""How many faults in a row, without an epoch between them, put a node aside."""

AtFault = Literal["node", "process", "chance"]

NODE_ID_LABEL = "ray.io/node-id"

# What the operating system says of a broken disk, a lost mount or a device that is gone. Not ENOSPC: a full
# disk is usually everybody's.
_OF_THE_NODE = frozenset({
    errno.EIO, errno.ENXIO, errno.ENODEV, errno.EROFS, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE,
})  # fmt: skip
# What CUDA says of a broken card, whatever the type of the exception.
_OF_THE_CARD = (
    "uncorrectable ECC error",
    "no CUDA-capable device",
    "all CUDA-capable devices are busy or unavailable",
    "device unavailable",
    "hardware error",
    "unspecified launch failure",
    "system not yet initialized",
    "CUDA driver initialization failed",
)


def is_of_the_node(error: BaseException | None) -> bool:
    """Return whether `error`, or what it was raised from, says that the machine is broken, not the trial."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_THE_NODE:
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _OF_THE_CARD):
            return True
        error = error.__cause__ or error.__context__
    return False


class TrialFault(Exception):
    """A trial ended at once, or by a fault of its machine, and is to be retried elsewhere.

    Raised and not reported as a result, so that Ray ends the process, whose state nobody can vouch for.

    Args:
        why: in a sentence.
        at_fault: the ``node``, this ``process``, or by ``chance`` either of them or the trial.
        node: Ray's id of the node; `host`: its name.
        record: the trial's record as it stands, in JSON.
    """

    def __init__(self, why: str, at_fault: AtFault, node: str, host: str, record: str) -> None:
        super().__init__(why, at_fault, node, host, record)  # so that it can be pickled
        self.why, self.at_fault, self.node, self.host, self.record = why, at_fault, node, host, record

    def __str__(self) -> str:
        return self.why


class Nodes:
    """The nodes of the cluster: counts the faults of each and puts those aside on which nothing goes well.

    `aside` holds their host names by Ray's id.

    Args:
        alive: returns what Ray knows of every living node (`ray.nodes`); called only after a fault.
    """

    def __init__(self, alive: Callable[[], Sequence[Mapping[str, Any]]] | None = None) -> None:
        self.aside: dict[str, str] = {}
        self._alive = alive or living_nodes
        self._faults: defaultdict[str, set[str]] = defaultdict(set)
        # Where a trial failed at once: should it train elsewhere, the fault was the node's.
        self._suspected: defaultdict[str, set[str]] = defaultdict(set)

    def trained(self, node: str, trial_id: str) -> list[str]:
        """Take in that `trial_id` finished an epoch on `node`; return the nodes that this puts aside."""
        self._faults.pop(node, None)
        return [
            other for other in self._suspected.pop(trial_id, set()) - {node} if self.fault(other, trial_id)
        ]

    def suspect(self, node: str, trial_id: str) -> None:
        """Remember that `trial_id` failed at once on `node`, for reasons that may be its own."""
        self._suspected[trial_id].add(node)

    def fault(self, node: str, key: str) -> bool:
        """Count a fault of `node`, once a `key`; return whether it is put aside from now on."""
        self._faults[node].add(key)
        if node in self.aside or len(self._faults[node]) < MAX_FAULTS:
            return False
        names = {each["NodeID"]: each["NodeManagerHostname"] for each in self._alive()}
        self.aside[node] = names.get(node, node[:8])
        return True

    def is_stranded(self, resources: Mapping[str, float], avoid: Collection[str]) -> bool:
        """Return whether a trial waits in vain that keeps off the nodes in `avoid`: there are no others."""
        if not avoid:
            return False
        able = set(self.able(resources))
        return bool(able or self.aside) and able <= set(avoid)

    def able(self, resources: Mapping[str, float]) -> list[str]:
        """Return the living nodes that could hold `resources` (``cpu``, ``gpu``), but for those put aside."""
        return [
            node["NodeID"]
            for node in self._alive()
            if node["NodeID"] not in self.aside
            and all(node["Resources"].get(name.upper(), 0.0) >= n for name, n in resources.items())
        ]


def living_nodes() -> list[dict[str, Any]]:
    """Return what Ray knows of every living node of the cluster."""
    return [node for node in ray.nodes() if node["Alive"]]


def placed(resources: Mapping[str, float], avoid: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of Ray's PlacementGroupFactory for a trial that keeps off the nodes in `avoid`."""
    bundles = [{"CPU": resources["cpu"], "GPU": resources["gpu"]}]
    if not avoid:
        return {"bundles": bundles}
    return {"bundles": bundles, "bundle_label_selector": [{NODE_ID_LABEL: f"!in({','.join(avoid)})"}]}


def fault_of(error: Exception | None) -> TrialFault | None:
    """Return the `TrialFault` that Ray wrapped, None for another error."""
    cause = getattr(error, "cause", error)
    return cause if isinstance(cause, TrialFault) else None
