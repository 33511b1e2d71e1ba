"""What tests of weak networks share: one server, a proxy before it, and what is to be there."""

import os
import uuid

import mlflow
import pytest
import sqlalchemy
from tracking.servers import Proxy, Server
from tracking.small_job import run_job, what_is_there


@pytest.fixture(scope="session")
def server(empty_database, tmp_path_factory):
    """A real MLflow server."""
    started = Server(empty_database, tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.kill()


@pytest.fixture(scope="session")
def postgres():
    """The address of a new database, on the server that the environment names."""
    address = os.environ.get("REUSEKIT_TEST_POSTGRES")
    if address is None:
        pytest.skip("REUSEKIT_TEST_POSTGRES holds no address")
    engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT")
    name = f"reusekit_{uuid.uuid4().hex[:12]}"
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    yield engine.url.set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def remote(server, tmp_path, monkeypatch):
    """A proxy before the server, by which MLflow reaches it; and a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    proxy = Proxy(server.uri)
    mlflow.set_tracking_uri(proxy.uri)
    yield proxy
    proxy.stop()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def experiment():
    """The name of an experiment that no other test uses."""
    return f"weak {uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def everything(module_tracking):
    """What the job leaves where nothing fails."""
    run_job(None)
    return what_is_there(module_tracking)


@pytest.fixture
def there(server, experiment):
    """What there is on the server of the test's experiment, read from its database."""
    return lambda: what_is_there(server.database(), experiment, server.artifacts)


@pytest.fixture(params=["sqlite", "server", "postgres"])
def store(request, monkeypatch, experiment):
    """Each kind of store, MLflow pointed at it; gives what there is of the test's experiment."""
    if request.param == "server":
        request.getfixturevalue("remote")
        return request.getfixturevalue("there")
    if request.param == "sqlite":
        request.getfixturevalue("tracking")
    else:
        address = request.getfixturevalue("postgres")
        request.getfixturevalue("tracking")
        mlflow.set_tracking_uri(address)
    return lambda: what_is_there(mlflow.MlflowClient(), experiment)
