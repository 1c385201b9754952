"""Bundles on Ray Serve: one deployment per segment, scaled by the traffic that reaches it. Runs without torch.

Two fronts share the deployments: `offramp serve --engine ray`, the server of this process with replicas behind it, and
`build`, an application of Ray Serve for `serve run`, `serve build` and `serve deploy`.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from offramp import __version__
from offramp.bundle.read import Bundle
from offramp.lookup import ParameterError, nearest
from offramp.serve.models import Opener, Predictor, named
from offramp.serve.options import ServeOptions
from offramp.serve.versions import open_versions

ENVIRONMENT = "OFFRAMP_SERVE"
"""JSON object with the arguments of `build`, for `serve build offramp.serve.ray_app:app`."""
OPENING = 300.0
"""Seconds in which all replicas of a model must be ready."""
ENDING = 20.0
"""Seconds in which they must be gone."""
REPEAT = 0.5
"""Seconds after which it is looked whether they are."""
GRACE = 10.0
"""Seconds in which a replica must finish its batches when it is removed; it has none when its model is closed."""
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""Name of the actor by which Serve is known to a cluster."""
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
            name=_name(model, version, index),
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


def _name(model: str, version: str, index: int) -> str:
    return f"{model}-{version}-segment-{index + 1}"


@contextmanager
def opened(address: str | None) -> Iterator[Opener]:
    """What opens the models of a `Server` on a Ray cluster, while the context is open.

    Args:
        address: as `offramp.engine.choice.opened` takes it.
    Raises:
        ParameterError: if Ray is not installed or does not answer.
    """
    from offramp.engine.ray import connected  # here, because it imports torch, which replicas do not need

    with connected(address) as cluster:
        try:
            from ray import serve
        except ImportError as error:
            message = f"engine=ray needs Ray Serve ({error}): pip install 'offramp[ray]'"
            raise ParameterError(message, "engine") from None
        opener, started = RayOpener(cluster.ray), not _running(cluster.ray)
        _plain_loggers()
        try:
            serve.start(proxy_location="Disabled", logging_config=QUIET)
            yield opener
        finally:
            opener.close()
            if started and not opener.lost and not serve.status().applications:
                serve.shutdown()  # else Serve would be without HTTP for its next user


def _plain_loggers() -> None:
    """Let the program decide what becomes of warnings of Ray in this process; Ray would print them and more."""
    for name in ("ray", "ray.serve"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def _running(ray: Any) -> bool:
    """Whether Serve runs on the cluster."""
    try:
        ray.get_actor(CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True


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
                names[version] = [_name(model, version, index) for index in range(len(bundle.segments))]
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


def build(arguments: Mapping[str, Any]) -> Any:
    """An application of Ray Serve: HTTP as of `offramp serve`, and the segments behind it.

    Args:
        arguments: `bundles` as `offramp serve` takes them (a list, or comma-separated); `cpus`, cores of a replica;
            `fronts`, replicas that serve HTTP; and fields of `ServeOptions`. Texts that are JSON are read as JSON.
    Raises:
        ParameterError: if a value is invalid.
        ValueError: if a bundle cannot be opened.
    """
    from ray import serve

    values = {name: _value(value) for name, value in arguments.items()}
    bundles, cpus, fronts = values.pop("bundles", []), values.pop("cpus", 1.0), values.pop("fronts", 1)
    known = [field.name for field in fields(ServeOptions)]
    for name in values:
        if name not in known:
            raise ParameterError(f"there is no option {name}; {nearest(name, [*known, 'bundles', 'cpus', 'fronts'])}")
    options = ServeOptions(**values)
    folders = named(bundles.split(",") if isinstance(bundles, str) else list(bundles))
    segments = [
        part
        for model, folder in folders.items()
        for version, bundle in open_versions(folder, options.runtime).items()
        for part in deployments(model, version, bundle, options, cpus)
    ]
    front = serve.deployment(serve.ingress(_asgi(folders, options))())
    return front.options(
        name="front",
        num_replicas=fronts,
        max_ongoing_requests=options.queue,
        ray_actor_options={"num_cpus": cpus},
        logging_config=QUIET,
    ).bind(*segments)


def _value(value: Any) -> Any:
    """A value of `serve run NAME=VALUE`, which passes on texts."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _asgi(folders: Mapping[str, Path], options: ServeOptions) -> Callable[[], Any]:
    """What builds the HTTP application on a replica; it finds its segments by their names."""

    def application() -> Any:
        from offramp.serve.app import build
        from offramp.serve.models import Models

        return build(Models(folders, options, _finder(folders)), options)

    return application


def _finder(folders: Mapping[str, Path]) -> Opener:
    """An opener whose deployments are there already."""
    names = {folder: name for name, folder in folders.items()}

    def find(folder: Path, options: ServeOptions) -> Mapping[str, Predictor]:
        from ray import serve

        from offramp.serve.ray_predictor import RayPredictor

        if folder not in names:
            raise ValueError("Ray Serve deployed this model: deploy it again, with `serve deploy` or `serve run`")
        model = names.pop(folder)
        result: dict[str, Predictor] = {}
        for version, bundle in open_versions(folder, options.runtime).items():
            parts = [_name(model, version, index) for index in range(len(bundle.segments))]
            result[version] = RayPredictor(bundle, [serve.get_deployment_handle(name) for name in parts], options)
        return result

    return find


def __getattr__(name: str) -> Any:
    """`app`, the application that `serve build` imports."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    text = os.environ.get(ENVIRONMENT)
    if text is None:
        raise ValueError(f'set {ENVIRONMENT} to a JSON object, such as {{"bundles": "/models/digits"}}')
    return build(json.loads(text))
