"""What Prometheus reads at `/metrics`: rendered from the counters when it asks. Runs without torch."""

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from offramp.serve.models import Models, Version
from offramp.serve.statistics import Histogram

MODEL = ["model", "version"]


class Requests:
    """Requests by endpoint and status, and refusals by reason."""

    def __init__(self) -> None:
        self.served: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()

    def refuse(self, reason: str) -> None:
        """Count a request, or a connection, that is refused or given up for this reason."""
        self.refused[reason] += 1


class _Everything(Collector):
    """All metrics of a server. `Collector` is the interface that Prometheus' library asks for."""

    def __init__(self, models: Models, requests: Requests) -> None:
        self.models, self.requests = models, requests

    def collect(self) -> Iterable[Metric]:
        """Every metric as it is now."""
        served = CounterMetricFamily("offramp_requests", "Requests by endpoint and status.", labels=["path", "status"])
        for (path, status), count in self.requests.served.items():
            served.add_metric([path, status], count)
        refused = CounterMetricFamily("offramp_refused", "Requests that were refused, by reason.", labels=["reason"])
        for reason, count in self.requests.refused.items():
            refused.add_metric([reason], count)
        yield from (served, refused, *_of_models(self.models.all()))


def render(models: Models, requests: Requests) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Everything(models, requests))
    return generate_latest(registry)


def _of_models(versions: list[Version]) -> Iterator[Metric]:
    images = CounterMetricFamily(
        "offramp_images", "Images answered, by exit (counted from 1).", labels=[*MODEL, "exit"]
    )
    late = CounterMetricFamily("offramp_at_deadline", "Images answered at their deadline.", labels=[*MODEL, "exit"])
    failed = CounterMetricFamily("offramp_failed", "Images whose segment failed.", labels=MODEL)
    share = GaugeMetricFamily("offramp_exit_share", "Share of the images that exit here.", labels=[*MODEL, "exit"])
    queue = GaugeMetricFamily(
        "offramp_queue_length", "Images that wait for a segment (counted from 1).", labels=[*MODEL, "segment"]
    )
    busy = CounterMetricFamily("offramp_segment_seconds", "Seconds of computation.", labels=[*MODEL, "segment"])
    batches = HistogramMetricFamily("offramp_batch_size", "Images of a batch.", labels=[*MODEL, "segment"])
    latency = HistogramMetricFamily(
        "offramp_latency_seconds", "Seconds from arrival to answer, by exit.", labels=[*MODEL, "exit"]
    )
    alarm = GaugeMetricFamily("offramp_drift_alarm", "1 if the test of drift has raised an alarm.", labels=MODEL)
    evidence = GaugeMetricFamily("offramp_drift_log10_evidence", "Evidence for drift.", labels=MODEL)
    for each in versions:
        name, counts = [each.model, each.version], each.predictor.statistics
        total = max(1, sum(counts.answered))
        for part in each.bundle.manifest.parts:
            labels = [*name, str(part.exit + 1)]
            images.add_metric(labels, counts.answered[part.exit])
            late.add_metric(labels, counts.late[part.exit])
            share.add_metric(labels, counts.answered[part.exit] / total)
            latency.add_metric(labels, *_buckets(counts.latencies[part.exit]))
        for segment, waiting in enumerate(each.predictor.waiting):
            labels = [*name, str(segment + 1)]
            queue.add_metric(labels, waiting)
            busy.add_metric(labels, counts.seconds[segment])
            batches.add_metric(labels, *_buckets(counts.batches[segment]))
        failed.add_metric(name, counts.failed)
        report = each.drift.report()
        if report["tested"]:
            alarm.add_metric(name, float(report["alarm"]))
            evidence.add_metric(name, report["log10_evidence"])
    yield from (images, late, failed, share, queue, busy, batches, latency, alarm, evidence)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, and the sum."""
    result, total = [], 0
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        result.append((bound, float(total)))
    return result, histogram.total
