"""No secret in a log, ever: registry passwords, API keys, values of environment variables."""

from __future__ import annotations

import subprocess
import sys

import pytest

SECRETS = ("hunter2-password", "k3y-of-the-server", "k3y-of-a-stranger", "value-in-the-environment", "uri-password")

SCRIPT = """
import asyncio, sys
import grpc
from opensandboxd.v1 import sandbox_pb2 as pb, sandbox_service_pb2 as rpc, sandbox_service_pb2_grpc as stubs
from opensandboxd_server import logs
from opensandboxd_server.domain.errors import BackendError, FailedPrecondition
from opensandboxd_server.settings import LogSettings
from tests.harness import serving

KEY = (("open-sandbox-api-key", "k3y-of-the-server"),)

def body(**fields):
    auth = pb.RegistryAuth(username="user", password="hunter2-password")
    spec = pb.SandboxSpec(
        image=pb.ImageSource(uri="registry.example.com/img:1", auth=auth), env={"TOKEN": "value-in-the-environment"}
    )
    request = rpc.CreateSandboxRequest(spec=spec)
    request.MergeFrom(rpc.CreateSandboxRequest(**fields))
    return request

async def attempt(call):
    try:
        return await call
    except grpc.aio.AioRpcError:
        return None

async def main():
    async with serving(server={"api_key": "k3y-of-the-server"}) as server:
        stub, driver = server.sandboxes, server.driver
        create = lambda **fields: attempt(stub.CreateSandbox(body(**fields), metadata=KEY))
        made = (await create(request_id="r")).sandbox
        await create(request_id="r", metadata={"another": "body"})
        await attempt(stub.CreateSandbox(body()))
        await attempt(stub.CreateSandbox(body(), metadata=(("open-sandbox-api-key", "k3y-of-a-stranger"),)))
        for wrong in (
            pb.SandboxSpec(env={"1": "value-in-the-environment"}),
            pb.SandboxSpec(env={"A=value-in-the-environment": ""}),
            pb.SandboxSpec(env={"A": "value-in-the-environment\\0"}),
            pb.SandboxSpec(image=pb.ImageSource(auth=pb.RegistryAuth(password="hunter2-password"))),
            pb.SandboxSpec(image=pb.ImageSource(uri="user:uri-password@registry.example.com/img")),
            pb.SandboxSpec(image=pb.ImageSource(uri="https://user:uri-password@registry.example.com/img")),
            pb.SandboxSpec(require_secure_runtime=True),
        ):
            await create(spec=wrong)
        for step in ("pull", "create", "start"):
            for error in (RuntimeError("boom"), BackendError("boom"), FailedPrecondition("IMAGE_PULL_FAILED", "no")):
                for when in (rpc.RETURN_WHEN_RUNNING, rpc.RETURN_WHEN_ACCEPTED):
                    driver.inject_error(step, error)
                    reply = await create(return_when=when)
                    if reply:
                        await stub.WaitSandbox(rpc.WaitSandboxRequest(id=reply.sandbox.id), metadata=KEY)
        for verb in ("pause", "resume", "delete"):
            driver.inject_error(verb, RuntimeError("boom"))
        for verb in ("Pause", "Resume", "Delete"):
            request = getattr(rpc, f"{verb}SandboxRequest")(id=made.id)
            await attempt(getattr(stub, f"{verb}Sandbox")(request, metadata=KEY))
        await stub.GetSandbox(rpc.GetSandboxRequest(id=made.id), metadata=KEY)
        await stub.ListSandboxes(rpc.ListSandboxesRequest(), metadata=KEY)
        driver.lose(); driver.recover()
        driver.vanish(made.id)
        await asyncio.sleep(0.1)
    print("done")

logs.configure(LogSettings(level="DEBUG", format=sys.argv[1]))
asyncio.run(main())
"""


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_secret_is_in_the_log(format: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, format], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    for expected in ("sandbox created", "API_KEY_INVALID", "INVALID_FIELD", "boom", "Traceback", "behind the server"):
        assert expected in done.stderr, f"the log should tell of {expected!r}"
    for secret in SECRETS:
        lines = [line for line in done.stderr.splitlines() if secret in line]
        assert not lines, f"{secret} is in {lines}"
