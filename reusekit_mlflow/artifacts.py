"""MLflow's access to the models that reusekit has logged, by whichever address.

MLflow imports this with `import mlflow`, so it imports reusekit only when such a model is fetched.
"""

import atexit
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version

_JOINED = {PurePosixPath("."), PurePosixPath("data"), PurePosixPath("data/model.keras")}


class ModelRepository(ModelsArtifactRepository):
    """MLflow's own for `models:/...` and, through it, `runs:/RUN_ID/NAME`.

    What reusekit has logged is fetched as by `LinkedModelRepository`, so that it can be loaded by
    its id, by its run, and as a version that someone else has registered or copied.

    Args:
        artifact_uri: `models:/MODEL_ID`, `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
        tracking_uri: Where the model is logged; None for the current server.
        registry_uri: Where it is registered; None for the current one.
    """

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        from mlflow import MlflowClient

        super().__init__(artifact_uri, tracking_uri, registry_uri)
        client = MlflowClient(tracking_uri, registry_uri)
        model_id, seen = None, set()
        while model_id is None and artifact_uri not in seen:  # a version may be a copy of another
            seen.add(artifact_uri)
            found = get_model_name_and_version(client, artifact_uri)
            if len(found) == 1:
                model_id = found[0]
            else:
                scheme, _, rest = (client.get_model_version(*found).source or "").partition(":")
                if scheme not in ("models", "reusekit"):
                    return
                artifact_uri = f"models:{rest}"
        if model_id and "reusekit.role" in client.get_logged_model(model_id).tags:
            linked: Any = LinkedModelRepository(f"reusekit:/{model_id}", tracking_uri, registry_uri)
            self.repo = linked


class LinkedModelRepository(ArtifactRepository):
    """A logged model's files; a whole that refers to its parts is joined when it is fetched.

    It is read by hash, and may ask MLflow for no more than to read it.

    So plain `mlflow.keras.load_model`, `mlflow.pyfunc.load_model` and `mlflow models serve` get a
    whole model. Fetching also makes reusekit's own layers known to Keras.

    Args:
        artifact_uri: `reusekit:/MODEL_ID`.
        tracking_uri: Where the model is logged; None for the current server.
        registry_uri: Where it is registered; None for the current one.
    """

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        # Here, since MLflow's registry imports this module while it is imported itself.
        from mlflow import MlflowClient
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._model_id = artifact_uri.partition(":")[2].strip("/")
        if not re.fullmatch("m-[0-9a-f]{32}", self._model_id):  # such as another version
            raise MlflowException(f"Expected reusekit:/MODEL_ID. Received: {artifact_uri[:200]!r}.")
        self._client = MlflowClient(tracking_uri, registry_uri)
        location = self._client.get_logged_model(self._model_id).artifact_location
        if location.startswith(("models:", "reusekit:", "runs:")):
            raise MlflowException(f"{artifact_uri} says that it lies at another address.")
        self._stored = get_artifact_repository(location, tracking_uri, registry_uri)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        """Fetch a file or folder; with the weights among it, the whole model is joined first."""
        if PurePosixPath(artifact_path or ".") not in _JOINED:
            return self._stored.download_artifacts(artifact_path, dst_path)
        made = dst_path is None
        folder = Path(tempfile.mkdtemp() if dst_path is None else dst_path)
        if made:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            self._join(folder)
        except BaseException:
            if made:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return str(folder / artifact_path)

    def _join(self, folder: Path) -> None:
        """Fetch everything, and see that MLflow can load it and that it is what was logged."""
        from reusekit.tracking.stored import complete, refuse_links

        if isinstance(self._stored, LocalArtifactRepository):
            refuse_links(Path(self._stored.artifact_dir), self.artifact_uri)
        self._stored.download_artifacts("", str(folder))
        complete(folder, self._model_id, self._client)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """List the stored files; a whole that is not joined yet has no weights of its own."""
        return self._stored.list_artifacts(path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._stored._download_file(remote_file_path, local_path)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> Any:
        """Refuse to change a version."""
        raise MlflowException("A registered model cannot be changed; log a new one.")

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> Any:
        """Refuse to change a version."""
        raise MlflowException("A registered model cannot be changed; log a new one.")
