"""The segments of bundles as deployments of Ray Serve, and how a server opens and closes them. Runs without torch."""

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from offramp import __version__
from offramp.bundle.read import Bundle
from offramp.serve.models import Predictor
from offramp.serve.options import ServeOptions
from offramp.serve.versions import open_versions

OPENING = 300.0
"""Seconds in which all replicas of a model must be ready."""
ENDING = 20.0
"""Seconds in which they must be gone."""
REPEAT = 0.5
"""Seconds between two looks whether they are gone."""
GRACE = 10.0
"""Seconds in which a replica must finish its batches when it is removed; it has none when its model is closed."""
SHARE = 4
"""A small cluster has places for this many replicas per segment: those of a reload need places beside the old ones."""
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def deployments(model: str, version: str, bundle: Bundle, options: ServeOptions, cpus: float) -> list[Any]:
    """One bound deployment per segment, each with replicas of its own.

    Serve adds replicas while more than half a batch of requests per replica is on its way, and removes idle ones.

    Args:
        cpus: cores of one replica.
    """
    from ray import serve

    from offramp.serve.ray_segment import INLINE, SegmentReplica

    scaling = {
        "min_replicas": 1,
        "max_replicas": options.replicas,
        "target_ongoing_requests": max(1, options.max_batch // 2),
    }
    folder, policy = str(bundle.folder.absolute()), bundle.policy.to_json()
    more = {
        "runtime": options.runtime,
        "max_batch": options.max_batch,
        "threads": max(1, int(cpus)),
        "version": __version__,
        "inline": INLINE,
    }
    return [
        serve.deployment(SegmentReplica)
        .options(
            name=segment_name(model, version, index),
            autoscaling_config=scaling,
            max_ongoing_requests=2 * options.max_batch,
            ray_actor_options={"num_cpus": cpus},
            health_check_period_s=2.0,
            graceful_shutdown_timeout_s=GRACE,
            logging_config=QUIET,
        )
        .bind(folder, policy, index, **more)
        for index in range(len(bundle.segments))
    ]


def segment_name(model: str, version: str, index: int) -> str:
    """Of a deployment, and of its application."""
    return f"{model}-{version}-segment-{index + 1}"


class RayOpener:
    """Deploys models on a Ray cluster; an `offramp.serve.models.Opener` that can be told to give up."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.lost = False
        """Whether the cluster has not answered in time; each further call would wait a minute for it."""
        self._names: set[str] = set()
        """Of the applications that are not deleted yet."""
        self._given_up = threading.Event()

    def __call__(self, folder: Path, options: ServeOptions) -> Mapping[str, Predictor]:
        """Deploy every version of a model; each segment is an application, so that a reload replaces nothing in use.

        Raises:
            ValueError: if it cannot be opened here or there.
        """
        from ray import serve

        from offramp.serve.ray_predictor import RayPredictor

        versions, model = open_versions(folder, options.runtime), f"{folder.resolve().name}-{uuid4().hex[:8]}"
        segments = sum(len(bundle.segments) for bundle in versions.values())
        cpus = min(1.0, self.ray.cluster_resources()["CPU"] / (SHARE * segments))
        names, handles = dict[str, list[str]](), dict[str, list[Any]]()
        try:
            for version, bundle in versions.items():
                names[version] = [segment_name(model, version, index) for index in range(len(bundle.segments))]
                self._names.update(names[version])
                parts = deployments(model, version, bundle, options, cpus)
                targets = [serve.RunTarget(part, name, None) for part, name in zip(parts, names[version], strict=True)]
                handles[version] = serve.run_many(targets, wait_for_applications_running=False)
            _wait([name for each in names.values() for name in each], self._given_up)
        except ValueError:
            self._delete([name for each in names.values() for name in each])
            raise
        return {
            version: RayPredictor(bundle, handles[version], options, partial(self._delete, names[version]))
            for version, bundle in versions.items()
        }

    def give_up(self) -> None:
        """Wait no longer for a model that is being deployed: the server stops."""
        self._given_up.set()

    def close(self) -> None:
        """Delete what is left, such as a model for which nobody waited any more."""
        self.give_up()
        self._delete(list(self._names))

    def _delete(self, names: Sequence[str]) -> None:
        """Delete applications and wait until they are gone, for `ENDING` seconds: a lost cluster does not answer."""
        if names and not self.lost:
            deleting = threading.Thread(target=_delete, args=(names, time.monotonic() + ENDING), daemon=True)
            deleting.start()
            deleting.join(ENDING)
            self.lost = deleting.is_alive()
        self._names.difference_update(names)


def _wait(names: Sequence[str], given_up: threading.Event) -> None:
    """Wait until all applications run."""
    from ray import serve

    end = time.monotonic() + OPENING
    while True:
        applications = serve.status().applications
        states = {name: applications[name] for name in names}
        for name, state in states.items():
            if state.status == "DEPLOY_FAILED" or time.monotonic() > end:
                reasons = [state.message, *(each.message for each in state.deployments.values())]
                lines = [line.strip() for reason in reasons for line in reason.splitlines() if line.strip()]
                raise ValueError(f"Ray did not start {name}: {lines[-1] if lines else state.status}")
        if all(state.status == "RUNNING" for state in states.values()):
            return
        if given_up.wait(0.1):
            raise ValueError("the server stops")


def _delete(names: Sequence[str], end: float) -> None:
    """Delete applications until they are gone; again and again, because a controller that is restarted forgets it."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    while time.monotonic() < end - REPEAT:
        try:
            left = set(names) & set(serve.status().applications)
            for name in left:
                serve.delete(name, _blocking=False)
        except (RayError, RayServeException):  # while the controller is restarted
            left = set(names)
        if not left:
            return
        time.sleep(REPEAT)
