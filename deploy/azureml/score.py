"""Serves one of voltmill's models from an Azure ML endpoint: the same numbers, to the bit, as in the flow.

Azure ML's inference server calls ``init`` once and ``run`` for each request. The model is the ONNX file under
``AZUREML_MODEL_DIR``, where Azure ML puts it; ``VOLTMILL_MODEL`` names one of several there, or without that
folder the path of a file or a shipped model. Requests and answers: `voltmill.connectors.endpoint_wire`.
"""

import os
from pathlib import Path

from azureml_inference_server_http.api.aml_response import AMLResponse

from voltmill.connectors import endpoint_wire as wire
from voltmill.operators.model import ModelError, OnnxModel, load

model: OnnxModel


def init() -> None:
    """Load the model.

    Raises:
        ModelError: there is none, or not one alone, or it keeps state between rows.
    """
    global model
    found = load(find_model(os.environ.get("AZUREML_MODEL_DIR", ""), os.environ.get("VOLTMILL_MODEL", "")))
    if found.contract.kind == "step":
        raise ModelError(f"{found.contract.name}: kind step: a server keeps no state: run it in the flow")
    assert isinstance(found, OnnxModel)
    model = found
    print(f"voltmill: {model.contract.name} {model.contract.version}, SHA-256 {model.sha256}")


def find_model(folder: str, name: str) -> str | Path:
    """What to load: a path, or the name of a shipped model."""
    if not folder and not name:
        raise ModelError("no model: set AZUREML_MODEL_DIR or VOLTMILL_MODEL")
    if not folder:
        return name
    found = [file for file in sorted(Path(folder).rglob("*.onnx")) if name in ("", file.name, file.stem)]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ModelError(f"{folder}: one ONNX file is needed, found {names}: set VOLTMILL_MODEL to the name of one")
    return found[0]


def run(data: str) -> AMLResponse:
    """The outputs for the rows of a request; status 400 and a reason for what is no request."""
    contract = model.contract
    try:
        features = wire.read_request(data, contract.feature_names, contract.window_rows)
    except wire.WireError as error:
        return AMLResponse({"message": str(error)}, 400, json_str=True)
    answer = wire.answer(model.predict(features))
    return AMLResponse(answer, 200, {"Content-Type": "application/json"})
