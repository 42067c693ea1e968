"""Reads endpoint.yml and deployment.yml of folders by azure-ai-ml, in a process of its own: ``azureml_yaml.py DIR...``.

Its import takes seconds, warns, and changes the logging of the process. Prints a JSON list: what is wrong with each
folder, empty where nothing is.
"""

import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
from azure.ai.ml import load_online_deployment, load_online_endpoint  # noqa: E402
from azure.ai.ml.entities import ManagedOnlineDeployment, ManagedOnlineEndpoint  # noqa: E402


def wrong(folder: Path) -> str:
    try:
        endpoint = load_online_endpoint(folder / "endpoint.yml")
        deployment = load_online_deployment(folder / "deployment.yml")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    assert isinstance(endpoint, ManagedOnlineEndpoint) and isinstance(deployment, ManagedOnlineDeployment)
    assert deployment.environment.conda_file["name"] == "voltmill"  # it was read, and is YAML
    return ""


print(json.dumps([wrong(Path(folder)) for folder in sys.argv[1:]]))
