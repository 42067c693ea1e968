"""Tries one place that alerts go to, without telling anyone anything."""

import dataclasses

from voltmill.connectors import mqtt_probe
from voltmill.connectors.mqtt_settings import MqttSettings
from voltmill.connectors.notify_errors import NotifyError
from voltmill.connectors.notify_http import Hub, Webhook
from voltmill.connectors.notify_settings import NotifySettings
from voltmill.connectors.probe import Finding
from voltmill.connectors.probe_network import explain

_SECONDS = 8.0


def probe(settings: NotifySettings, broker: MqttSettings) -> Finding:
    """Whether the place is there and takes our credentials; within ten seconds, raises nothing.

    A webhook is asked for its OPTIONS, a hub is sent a notification for a tag that no device bears, and a broker is
    logged in to. What only a message shows, ``voltmill notify test`` does.

    Args:
        settings: the place.
        broker: the broker of ``[mqtt]``, for a topic on it.
    """
    place = f"notify {settings.place}"
    if settings.mqtt is not None:
        found = mqtt_probe.probe(settings.mqtt.broker or broker, reads=False)
        return dataclasses.replace(found, place=place)
    seconds = min(_SECONDS, settings.timeout_seconds)
    try:
        channel = _channel(settings, seconds)
    except ValueError as error:  # ca_file
        return Finding(place, str(error))
    try:
        return Finding(place, facts=channel.probe())
    except NotifyError as error:
        if error.__cause__ is not None:
            return Finding(place, *explain(error.__cause__, seconds=seconds))
        return Finding(place, error.problem, error.mend)
    finally:
        channel.close()


def _channel(settings: NotifySettings, seconds: float) -> Webhook | Hub:
    if settings.webhook is not None:
        return Webhook(settings.webhook, settings.source, seconds)
    assert settings.notification_hubs is not None
    return Hub(settings.notification_hubs, seconds)
