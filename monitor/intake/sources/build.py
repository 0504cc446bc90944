"""Configuration -> the source it names. Imports the chosen adapter only."""

from __future__ import annotations

from monitor.base.kinds import Stream
from monitor.config.sections import Config
from monitor.intake.sources import Source
from monitor.metrics import Metrics


def build_source(config: Config, metrics: Metrics) -> Source:
    """A source that has not connected yet."""
    source = config.source
    if source.kind == "files":
        from monitor.intake.sources.files import FileObserver, FileSettings, FileSource

        return FileSource(
            FileSettings(
                path=config.events_path,
                positions=config.state / "positions.sqlite",
                max_message_bytes=source.max_bytes,
            ),
            FileObserver(
                on_unreadable=lambda *_: metrics.source_errors.labels("unreadable_file").inc(),
                on_replaced=lambda *_: metrics.source_errors.labels("replaced_file").inc(),
            ),
        )
    from monitor.intake.sources.kafka import KafkaObserver, KafkaSettings, KafkaSource

    kafka = source.kafka
    assert kafka is not None
    topics = dict.fromkeys(kafka.predictions, Stream.PREDICTIONS) | dict.fromkeys(kafka.labels, Stream.LABELS)
    return KafkaSource(
        KafkaSettings(
            bootstrap_servers=",".join(kafka.bootstrap),
            group=kafka.group,
            topics=topics,
            session_timeout=kafka.session_timeout.total_seconds(),
            max_poll_interval=kafka.max_poll_interval.total_seconds(),
            max_message_bytes=source.max_bytes,
            security_protocol=kafka.security_protocol,
            sasl_mechanism=kafka.sasl_mechanism,
            sasl_username=kafka.username.reveal() if kafka.username else None,
            sasl_password=kafka.password.reveal() if kafka.password else None,
            ssl_cafile=kafka.ca_file,
            ssl_certfile=kafka.cert_file,
            ssl_keyfile=kafka.key_file,
        ),
        KafkaObserver(
            on_rebalance=lambda kind, _count: metrics.rebalances.labels(kind).inc(),
            on_offsets_lost=lambda _name, count: metrics.offsets_lost.inc(count),
            on_missing_topics=lambda names: metrics.missing_topics.set(len(names)),
        ),
    )
