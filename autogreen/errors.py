"""Everything that autogreen raises on purpose.

AutogreenError              every message says what, why and the next step
├── ConfigError             what the user wrote is not valid (names path, value, what is allowed)
│   └── UnknownNameError    a name that no table holds (the nearest known one is named)
├── RefusedError            valid, but it cannot really be done here (no kernel, no such layer)
├── StudyError              a study on disk that is locked, damaged, or belongs to something else
├── MeterError              a counter that is missing, forbidden or broken; never turned into 0 J
├── EvaluationError         one policy could not be evaluated (NaN, crash, out of memory, time limit)
│   └── LostError           the device went away with it; the policy is not to blame
├── TrackingError           an MLflow server that cannot be reached, or that refuses; never a reason to stop a sweep
└── BundleError             a bundle that is incomplete, changed, or does not keep its promise
    └── NotConclusiveError  its energy came out outside the promise, on a machine too busy to prove anything
"""


class AutogreenError(Exception):
    """Base of all errors meant for users. The command line prints the message and exits with 1."""


class ConfigError(AutogreenError, ValueError):
    """The user's input is not valid."""


class UnknownNameError(ConfigError):
    """A name is in no table."""


class RefusedError(AutogreenError):
    """The request is well-formed but cannot really be applied here."""


class StudyError(AutogreenError):
    """A study on disk cannot be used as asked."""


class MeterError(AutogreenError):
    """Energy cannot be read."""


class EvaluationError(AutogreenError):
    """One policy failed; the study goes on."""


class LostError(EvaluationError):
    """The machine that a job ran on is gone. What the study cannot do without is asked of another."""


class TrackingError(AutogreenError):
    """MLflow cannot be written or read; studies and bundles are whole without it."""


class BundleError(AutogreenError):
    """A bundle cannot be trusted or does not keep its promise."""


class NotConclusiveError(BundleError):
    """A bundle neither kept nor broke its promise of energy: other programs were running. The command line exits with
    3."""
