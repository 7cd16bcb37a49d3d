"""Numbers for Prometheus, by the names of `attributes.py` and no others.

A process that serves no metrics uses `NoMetrics` and does not import prometheus_client. A label's value that its rule
does not allow is counted under `other`: totals stay right and nothing leaks. Called by the aggregator's services; the
port (`metrics_server.py`) is plaintext and belongs on the loopback or the pod's own address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Protocol

from histofed.telemetry.attributes import METRICS, OTHER, Metric, OneOf

if TYPE_CHECKING:
    from histofed.telemetry.metrics_server import MetricsServer


class Metrics(Protocol):
    """Where the daemons count."""

    def count(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        ...

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        ...

    def forget(self, metric: Metric, **labels: str) -> None:
        """Drop one labelled series: a site that left must not keep its last value for ever."""
        ...


class NoMetrics:
    """Counts nothing."""

    def count(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """See `Metrics`."""

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """See `Metrics`."""

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See `Metrics`."""

    def forget(self, metric: Metric, **labels: str) -> None:
        """See `Metrics`."""


class PrometheusMetrics:
    """A registry of its own, with every metric of the allow-list in it from the start, and the process's CPU and memory.

    Counters whose labels have closed lists of values begin at 0 for each of these.
    """

    def __init__(self) -> None:
        import prometheus_client as prometheus

        self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self._registry)
        self._counters: dict[str, prometheus.Counter] = {}
        self._gauges: dict[str, prometheus.Gauge] = {}
        self._histograms: dict[str, prometheus.Histogram] = {}
        for metric in METRICS:
            labels = tuple(metric.labels)
            if metric.kind == "counter":
                counter = prometheus.Counter(metric.name, metric.help, labels, registry=self._registry)
                # a series that began with its first event would hide that event from `increase`
                for values in _all_labels(metric):
                    counter.labels(**values)
                self._counters[metric.name] = counter
            elif metric.kind == "gauge":
                self._gauges[metric.name] = prometheus.Gauge(metric.name, metric.help, labels, registry=self._registry)
            else:
                self._histograms[metric.name] = prometheus.Histogram(
                    metric.name, metric.help, labels, registry=self._registry, buckets=metric.buckets
                )

    def count(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """See `Metrics`."""
        counter = self._counters[metric.name]
        (counter.labels(**_told(metric, labels)) if metric.labels else counter).inc(amount)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """See `Metrics`."""
        gauge = self._gauges[metric.name]
        (gauge.labels(**_told(metric, labels)) if metric.labels else gauge).set(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """See `Metrics`."""
        histogram = self._histograms[metric.name]
        (histogram.labels(**_told(metric, labels)) if metric.labels else histogram).observe(value)

    def forget(self, metric: Metric, **labels: str) -> None:
        """See `Metrics`."""
        told = _told(metric, labels)
        self._gauges[metric.name].remove(*(told[name] for name in metric.labels))

    def render(self) -> bytes:
        """The text that a scrape gets."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def serve(self, host: str, port: int) -> MetricsServer:
        """Answer scrapes on `http://host:port/metrics` from a thread. Raises `ConfigError` when the port cannot be had."""
        from histofed.telemetry.metrics_server import MetricsServer

        return MetricsServer(self._registry, host, port)


def _all_labels(metric: Metric) -> Iterator[dict[str, str]]:
    """Every set of labels that the metric can have; none where it has no labels, or one of them is open."""
    lists = [sorted(rule.words) for rule in metric.labels.values() if isinstance(rule, OneOf)]
    if lists and len(lists) == len(metric.labels):
        yield from (dict(zip(metric.labels, values, strict=True)) for values in product(*lists))


def _told(metric: Metric, labels: Mapping[str, str]) -> dict[str, str]:
    """Every label of the metric, each with a value that may be told."""
    if labels.keys() != metric.labels.keys():
        raise TypeError(f"{metric.name} has the labels {sorted(metric.labels)}, not {sorted(labels)}")
    return {name: value if metric.labels[name].allows(value) else OTHER for name, value in labels.items()}
