"""The Arrow schemas of everything that flows, and the quality bits.

One name everywhere: the JSON key, the Arrow column, the SQL column and the Python argument are the
same word. Quantity first, unit last, after the Battery Data Format of the Battery Data Alliance.
Current is positive while charging. Times are UTC microseconds.

Each field carries its documentation as Arrow metadata (key ``doc``): unit, sign and what null means.
``describe`` renders it, and the documentation pages are made from it.
"""

from enum import IntFlag
from typing import Final

import pyarrow as pa

TIME: Final = pa.timestamp("us", tz="UTC")
# Columns with a handful of values per batch: one copy of the text and an index a row.
LABEL: Final = pa.dictionary(pa.int32(), pa.string())
FLOATS: Final = pa.list_(pa.field("item", pa.float32()))


class Quality(IntFlag):
    """What is known to be wrong or odd about a sample; a bit set, carried on to every prediction.

    The first thirteen are raised by ``decode`` and ``quality`` and describe the measurement; the
    last five are raised by ``estimate`` and describe a prediction made from it.
    """

    DUPLICATE = 1 << 0  # (device_id, seq) was seen before; takes no part in state
    LATE = 1 << 1  # older than the newest sample by more than late_after; takes no part in state
    OUT_OF_ORDER = 1 << 2  # not newer than the newest sample; takes no part in state
    CLOCK_SKEW = 1 << 3  # ahead of its arrival by more than clock_skew; takes no part in state
    GAP_BEFORE = 1 << 4  # samples are missing before this one, by seq or by time
    RANGE = 1 << 5  # a value outside the limits, or missing; that value takes no part in state
    RATE = 1 << 6  # a value moved faster than a battery can
    STUCK = 1 << 7  # a cell reading stands still while its siblings move
    SIGN_SUSPECT = 1 << 8  # voltage falls when current rises: the current sign looks reversed
    CELL_COUNT_CHANGED = 1 << 9  # not as many cells as in the sample before
    SUM_MISMATCH = 1 << 10  # the cells do not add up to the module voltage
    UNIT_CONVERTED = 1 << 11  # a mapping scaled, offset or sign-flipped a value
    REISSUED = 1 << 12  # sent again by an operator after its mapping was mended
    UNKNOWN_CELL = 1 << 13  # no fleet entry, or one of another cell type than the model: null
    OUT_OF_DOMAIN = 1 << 14  # a model input is missing or outside its valid range: null
    WARM_UP = 1 << 15  # the model has seen too little of the device yet: a wide interval
    MODEL_FAILED = 1 << 16  # the model failed; the value is a fallback
    PARTIAL_SESSION = 1 << 17  # the session is too short, or too different from what the model was made for: null


#: The ``source`` of dead letters that were sent through the graph again.
REDRIVE: Final = "redrive"

#: A sample with one of these bits is archived and takes no part in any state.
REFUSED: Final = Quality.DUPLICATE | Quality.LATE | Quality.OUT_OF_ORDER | Quality.CLOCK_SKEW


def _field(name: str, type_: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"doc": doc})


_LINEAGE: Final = [
    _field("source", LABEL, "where the message came through: mqtt, iothub, or redrive for a dead letter sent again"),
    _field(
        "source_partition",
        LABEL,
        "partition of the source: the MQTT topic filter, the hub's partition, or the file that holds the letter",
    ),
    _field("source_offset", pa.int64(), "position in its source partition; messages of one pack share it"),
]

#: What a source hands to ``decode``: one row a message, still in its native form.
RAW: Final = pa.schema(
    [
        _field("payload", pa.binary(), "the message as it was received"),
        _field("topic", LABEL, "where it was published; null if the source has no topics", nullable=True),
        _field("ingest_time", TIME, "when the source received it"),
        *_LINEAGE,
    ]
)

#: One row is one sample of one module or pack.
TELEMETRY: Final = pa.schema(
    [
        _field("device_id", pa.string(), "path-like name of the module, gateway/pack/module; the key of all state"),
        _field("event_time", TIME, "when the sample was measured, by the device's clock"),
        _field(
            "ingest_time", TIME, "when the source received it; null in data sets that never were live", nullable=True
        ),
        _field("seq", pa.uint64(), "the device's message counter; null if it has none", nullable=True),
        _field("current_ampere", pa.float32(), "module current, A, positive while charging; NaN if not measured"),
        _field("voltage_volt", pa.float32(), "module voltage, V; null if only cells are measured", nullable=True),
        _field("cell_voltage_volt", FLOATS, "voltage of each cell in series, V; NaN for a cell without reading"),
        _field("cell_temperature_celsius", FLOATS, "each temperature probe, °C; NaN for a probe without reading"),
        _field(
            "ambient_temperature_celsius", pa.float32(), "ambient temperature, °C; null if not measured", nullable=True
        ),
        _field(
            "bms_soc_percent",
            pa.float32(),
            "state of charge by the BMS, %, never mixed with ours; null if it says none",
            nullable=True,
        ),
        _field(
            "bms_soh_percent",
            pa.float32(),
            "state of health by the BMS, %, never mixed with ours; null if it says none",
            nullable=True,
        ),
        _field("charge_ah", pa.float64(), "cumulative charge into the module, Ah; null if not counted", nullable=True),
        _field(
            "discharge_ah",
            pa.float64(),
            "cumulative charge out of the module, Ah, counted positive; null if not counted",
            nullable=True,
        ),
        *_LINEAGE,
        _field("payload", pa.binary(), "the native message, kept when archive.payload is set", nullable=True),
        _field("quality_bits", pa.uint32(), "bit set of Quality"),
    ]
)

#: One row is one value of one target by one model. Primary key: the first four columns.
PREDICTION: Final = pa.schema(
    [
        _field("device_id", pa.string(), "the module"),
        _field("event_time", TIME, "the sample the value holds for"),
        _field("target", LABEL, "soc, soh or rul"),
        _field("model_sha256", LABEL, "SHA-256 of the model file, hexadecimal"),
        _field("value", pa.float32(), "the estimate, in unit; null: no guess, quality_bits says why", nullable=True),
        _field("lo90", pa.float32(), "lower end of the 90 % interval, in unit; null with value", nullable=True),
        _field("hi90", pa.float32(), "upper end of the 90 % interval, in unit; null with value", nullable=True),
        _field("unit", LABEL, "percent for soc and soh, cycles for rul"),
        _field("model_name", LABEL, "name in the model's contract"),
        _field("model_version", LABEL, "version in the model's contract"),
        _field("mode", LABEL, "live, shadow, replay or fallback"),
        _field("quality_bits", pa.uint32(), "bit set of Quality: the sample's and the prediction's own"),
        *_LINEAGE,
    ]
)

PREDICTION_KEY: Final = ("device_id", "event_time", "target", "model_sha256")

#: One row is a message, or a part of one, that could not be understood or stored.
DEAD_LETTER: Final = pa.schema(
    [
        _field(
            "payload",
            pa.binary(),
            "the message as it was received; null where no single message is to blame",
            nullable=True,
        ),
        _field("reason", LABEL, "class of the failure, such as malformed_json, for counting"),
        _field("detail", pa.string(), "what was wrong, in words, with the place"),
        _field("stage", LABEL, "the step that refused it: decode, estimate or sql"),
        _field("topic", LABEL, "where it was published; null if the source has no topics", nullable=True),
        _field("ingest_time", TIME, "when the source received it", nullable=True),
        *_LINEAGE,
    ]
)

#: One row is an alert episode; it opens and closes once.
ALERT: Final = pa.schema(
    [
        _field("alert_id", pa.string(), "hash of device, code and episode start: the same in every replay"),
        _field("device_id", pa.string(), "the module"),
        _field("code", LABEL, "what is wrong, named after SunSpec model 802 Evt1, such as OVER_TEMP_ALARM"),
        _field("severity", LABEL, "warning, alarm or critical"),
        _field("opened_at", TIME, "event time of the first sample of the episode"),
        _field("closed_at", TIME, "event time of the sample that ended it; null while open", nullable=True),
        _field("value", pa.float32(), "the worst value in the episode, in the unit of its rule", nullable=True),
        _field("limit", pa.float32(), "the limit it crossed, in the same unit", nullable=True),
        _field("quality_bits", pa.uint32(), "bit set of Quality over the episode"),
    ]
)

SCHEMAS: Final = {
    "telemetry": TELEMETRY,
    "prediction": PREDICTION,
    "dead_letter": DEAD_LETTER,
    "alert": ALERT,
}


def label(value: str | None, rows: int) -> pa.Array:
    """A ``LABEL`` column in which every row says ``value``."""
    indices = pa.repeat(pa.scalar(None if value is None else 0, pa.int32()), rows)
    return pa.DictionaryArray.from_arrays(indices, pa.array([] if value is None else [value], pa.string()))


def describe(schema: pa.Schema) -> str:
    """The columns of a schema as a Markdown table: name, type, whether null, meaning."""
    lines = ["| column | type | null | meaning |", "|---|---|---|---|"]
    for field in schema:
        type_ = "label" if field.type == LABEL else str(field.type)
        null = "yes" if field.nullable else ""
        lines.append(f"| `{field.name}` | {type_} | {null} | {field.metadata[b'doc'].decode()} |")
    return "\n".join(lines)
