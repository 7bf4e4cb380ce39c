"""Every route answers as /openapi.json says, whatever is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from audiocraft_mlx.server.app import create_app
from audiocraft_mlx.server.schema import JobRequest
from audiocraft_mlx.server.security import SecuritySettings
from tests.fake_service import FakeService
from tests.live_server import running

JOB = JobRequest(prompt="a piano", duration=0.1, seed=1, stems=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> FakeService:
    service = FakeService(tmp_path_factory.mktemp("data"))
    service.endless_events = False
    return service


@pytest.fixture(scope="module")
def url(service: FakeService) -> Iterator[str]:
    with running(service) as url:
        yield url


# What fields mean together (a prompt or a melody) can't be said in a schema: such requests are refused, too.
schemathesis.serializer("audio/*")(lambda context, value: value.encode() if isinstance(value, str) else value)
UNSAYABLE = [positive_data_acceptance]
schema = schemathesis.openapi.from_dict(create_app(FakeService(Path()), SecuritySettings()).openapi())


@schema.parametrize()
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_are_as_declared(case: schemathesis.Case, service: FakeService, url: str) -> None:
    # Half of the ids are of something that is there.
    job = service.submit(JOB, "test")
    if "id" in case.path_parameters and len(str(case.path_parameters["id"])) % 2:
        case.path_parameters["id"] = job.clips[0].id if "clips" in case.path else job.id
    case.call_and_validate(base_url=url, timeout=20, excluded_checks=UNSAYABLE)


def test_what_is_there_answers_without_an_error(service: FakeService, url: str) -> None:
    job = service.submit(JOB, "test")
    clip = job.clips[0].id
    for path in (
        *("/health", "/openapi.json", "/api/jobs", "/api/models", "/api/events", "/v1/models"),
        *(f"/api/jobs/{job.id}", f"/api/clips/{clip}/audio", f"/api/clips/{clip}/stream"),
        *(f"/api/clips/{clip}/peaks", f"/api/clips/{clip}/stems/drums"),
    ):
        assert httpx.get(url + path).status_code == 200, path
