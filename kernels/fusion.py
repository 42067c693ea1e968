"""Fusion of a SOC model with coulomb counting: a scalar Kalman filter per device.

Coulomb counting is exact over minutes and drifts over hours; a model that sees voltage, current and
temperature is right on average and noisy. The filter (R. E. Kalman, J. Basic Eng. 82, 1960; for SOC
G. L. Plett, J. Power Sources 134, 2004) predicts by the charge that flowed and corrects by the model:

    s += 100 * charge / usable capacity         P += process_noise * dt + (current_noise * dt / 36)^2
    K  = P / (P + R)                            s += K * (mean - s),     P *= 1 - K

- R: a Laplace density of scale b has the variance 2 b^2. The filter assumes measurement errors that are
  white; the model's are correlated over minutes, so a sample that comes dt after the last one brings only
  dt / correlation_seconds of an independent measurement: R = 2 b^2 * max(correlation_seconds / dt, 1). (The
  effective number of independent samples: C. E. Leith, J. Appl. Meteorol. 12, 1973.)
- P: the current is held between two samples; the charge error of that grows with dt, its variance with
  dt^2, so after a long gap the filter trusts the model again.

Everything is in percent of SOC. The charging efficiency is 1: Li-ion cells are above 0.99.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from voltmill.kernels.compile import kernel
from voltmill.kernels.schema import Quality

#: One slot a device: the estimate, percent; its variance, percent²; seconds since the start; whether a
#: first model value was seen. No padding: a snapshot stores the bytes.
FUSION_STATE: Final = np.dtype([("soc", "<f8"), ("variance", "<f8"), ("seconds", "<f8"), ("started", "<i8")])

#: What to do with a row. MEASURED: correct by the model.
MEASURED: Final = np.uint8(0)
#: The model has no say here (outside its domain): count the charge, give NaN.
WITHHELD: Final = np.uint8(1)
#: The model failed: count the charge, give the counted value with its growing interval (fallback).
COASTED: Final = np.uint8(2)

_WARM_UP: Final = np.uint32(Quality.WARM_UP)
# Variance of a SOC of which nothing is known: uniform on 0..100 %.
_IGNORANT: Final = 100.0**2 / 12.0
# C-rate assumed for the uncertainty where the current is unknown: an ordinary load.
_UNKNOWN_C_RATE: Final = 1.0


@kernel
def fuse(
    state: npt.NDArray[np.void],
    slots: npt.NDArray[np.integer],
    use: npt.NDArray[np.uint8],
    charge_step_ah: npt.NDArray[np.floating],
    interval_seconds: npt.NDArray[np.floating],
    usable_ah: npt.NDArray[np.floating],
    mean: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    process_noise: float,
    current_noise: float,
    correlation_seconds: float,
    interval_factor: float,
    warm_up_seconds: float,
    value: npt.NDArray[np.float32],
    lo90: npt.NDArray[np.float32],
    hi90: npt.NDArray[np.float32],
    bits: npt.NDArray[np.uint32],
) -> None:
    """Advance the filters of a batch, in row order; a row depends on its device's earlier rows alone.

    Args:
        state: FUSION_STATE, one element a slot, zeros for a new device; changed in place.
        slots: (rows,) slot of the row's device.
        use: (rows,) MEASURED, WITHHELD or COASTED.
        charge_step_ah: (rows,) charge into the module since the device's last row, Ah; NaN: unknown.
        interval_seconds: (rows,) time since the device's last row, s; 0 starts the filter anew (the first
            row, or one after a gap that is too long to bridge); NaN: the row has no features.
        usable_ah: (rows,) charge of the module between 0 and 100 % SOC, Ah; 0 or NaN: unknown.
        mean: (rows,) the model's SOC, percent; read where use is MEASURED; not finite: as WITHHELD.
        scale: (rows,) its Laplace scale, percent, above 0.
        process_noise: variance that coulomb counting gains, percent² per second.
        current_noise: standard deviation of the C-rate held between samples, 1/h.
        correlation_seconds: time over which the model's errors are correlated, s.
        interval_factor: half width of the 90 % interval in standard deviations.
        warm_up_seconds: time from the start in which a row bears WARM_UP, s.
        value: (rows,) out: the estimate, percent, 0..100; NaN: none.
        lo90: (rows,) out: lower end of the 90 % interval, percent, 0..100; NaN with value.
        hi90: (rows,) out: its upper end.
        bits: (rows,) out: WARM_UP is or-ed in.
    """
    for i in range(slots.shape[0]):
        k = slots[i]
        s, p, seconds, started = state[k].soc, state[k].variance, state[k].seconds, state[k].started
        dt = float(interval_seconds[i])
        if dt > 0.0:
            seconds += dt
        elif dt == 0.0:
            seconds, started = 0.0, 0
        if started and dt > 0.0:
            step = 100.0 * float(charge_step_ah[i]) / float(usable_ah[i])
            noise = current_noise
            if np.isfinite(step):
                s += step
            else:
                noise = _UNKNOWN_C_RATE
            p = min(p + process_noise * dt + (noise * dt / 36.0) ** 2, _IGNORANT)
        measured = (
            use[i] == MEASURED and dt >= 0.0 and np.isfinite(mean[i]) and scale[i] > 0.0 and np.isfinite(scale[i])
        )
        r = 2.0 * float(scale[i]) ** 2
        if measured:
            m = float(mean[i])
            if started:
                # K = P / (P + r * max(correlation / dt, 1))
                share = min(dt / correlation_seconds, 1.0)
                gain = p * share / (p * share + r)
                s += gain * (m - s)
                p *= 1.0 - gain
            else:
                # As uncertain as the model says: a start at rest, of which it is sure, outlasts a doubtful minute.
                s, p, started = m, min(r, _IGNORANT), 1
        s = min(max(s, 0.0), 100.0)
        if started and (measured or use[i] == COASTED):
            # Before the filter has settled, the model alone knows more than the filter claims.
            half = interval_factor * np.sqrt(min(p, r) if measured else p)
            value[i], lo90[i], hi90[i] = s, max(s - half, 0.0), min(s + half, 100.0)
        else:
            value[i] = lo90[i] = hi90[i] = np.nan
        if seconds < warm_up_seconds:
            bits[i] |= _WARM_UP
        state[k].soc, state[k].variance, state[k].seconds, state[k].started = s, p, seconds, started
