"""Bundles on Ray Serve: one deployment per segment, scaled by the traffic that reaches it. Runs without torch.

Two fronts share the deployments: `offramp serve --engine ray`, the server of this process with replicas behind it, and
`build`, an application of Ray Serve for `serve run`, `serve build` and `serve deploy`.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from offramp.lookup import ParameterError, nearest
from offramp.serve.models import Opener, Predictor, named
from offramp.serve.options import ServeOptions
from offramp.serve.ray_deployments import QUIET, RayOpener, deployments, segment_name
from offramp.serve.versions import open_versions

ENVIRONMENT = "OFFRAMP_SERVE"
"""JSON object with the arguments of `build`, for `serve build offramp.serve.ray_app:app`."""
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""Name of the actor by which Serve is known to a cluster."""


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
            parts = [segment_name(model, version, index) for index in range(len(bundle.segments))]
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
