"""The model that MLflow loads: it runs this file, which is logged beside the bundle ("models from code").

The package that measured travels along as plain source (`code/`), so that what serves is what was measured, and
autogreen need not be installed there. Nothing is unpickled; the bundle is checked before anything in it is opened.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A bundle as a pyfunc."""

    def load_context(self, context):  # type: ignore[no-untyped-def]
        """Check, load and compile the bundle, and run its golden inputs: a server is ready when this returns."""
        from autogreen.bundle.service import Service

        # MLflow runs this very file out of the same store: machine code beside it asks for no more trust
        self._service = Service(Path(context.artifacts["bundle"]), native_code=True)

    def predict(self, context, model_input: np.ndarray, params=None):  # type: ignore[no-untyped-def]
        """Arrays in, arrays out; what does not fit the signature is the caller's mistake (status 400).

        model_input may also be arrays by name; this hint is the one of which MLflow does not complain."""
        from autogreen.errors import ConfigError

        try:
            return self._service(model_input)
        except ConfigError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


model: Any = Served()
set_model(model)
