"""What start() makes sure of: an engine that answers, and a runtime that is what it is called."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from opensandboxd_server.domain.errors import StartupError
from opensandboxd_server.domain.runtimes import RUNTIMES
from opensandboxd_server.drivers.docker import kernelprobe
from opensandboxd_server.drivers.docker.driver import DockerDriver
from opensandboxd_server.drivers.docker.options import DockerOptions
from opensandboxd_server.drivers.docker.proof import LABEL, REPOSITORY
from tests.docker.conftest import Engine, PrivateEngine, plan_for, unheard

pytestmark = pytest.mark.docker

Start = Callable[[DockerOptions], Any]
PROBE = Path(kernelprobe.__file__).parent


@pytest.mark.gvisor
async def test_gvisor_is_proved_by_its_kernels_own_words(engine: Engine) -> None:
    options = engine.options("gvisor")
    driver = DockerDriver(options)
    before = datetime.now(UTC)
    try:
        info = await driver.start()
    finally:
        await driver.close()
    assert info.proof
    assert "Starting gVisor" in info.proof.kernel
    assert before < info.proof.time < datetime.now(UTC)
    assert engine.client.containers(all=True, filters={"label": f"{LABEL}={options.instance}"}) == []


@pytest.mark.gvisor
async def test_the_proof_needs_no_image_on_the_engine_and_leaves_one_small_one(engine: Engine, started: Start) -> None:
    tag = hashlib.sha256((PROBE / "probe-amd64").read_bytes()).hexdigest()[:16]
    for image in engine.client.images(f"{REPOSITORY}:{tag}"):
        engine.client.remove_image(image["Id"], force=True)
    await started(engine.options("gvisor"))
    [image] = engine.client.images(f"{REPOSITORY}:{tag}")
    assert image["Size"] < 2000


@pytest.mark.gvisor
async def test_probes_that_a_killed_server_left_are_swept(engine: Engine, started: Start) -> None:
    options = engine.options("gvisor")
    await started(options)
    [image] = [tag for found in engine.client.images(REPOSITORY) for tag in found["RepoTags"]][:1]
    labels = {LABEL: options.instance}
    engine.client.create_container(
        image, ["/probe"], name=f"opensandboxd-kernel-probe-{options.instance}", labels=labels
    )
    bystander = engine.client.create_container(image, ["/probe"], name=f"bystander-{options.instance}", labels=labels)
    await started(options)
    found = engine.client.containers(all=True, filters={"label": f"{LABEL}={options.instance}"})
    assert [container["Id"] for container in found] == [bystander["Id"]]


async def test_no_runtime_configured_is_nothing_to_prove(engine: Engine) -> None:
    driver = DockerDriver(engine.options())
    try:
        info = await driver.start()
    finally:
        await driver.close()
    host = engine.client.info()
    assert (info.name, info.version, info.proof, info.cpus) == ("docker", host["ServerVersion"], None, host["NCPU"])
    assert info.runtimes.keys() == RUNTIMES.keys()
    assert info.runtimes["gvisor"].available == ("runsc" in host["Runtimes"])
    assert not info.runtimes["kata-fc"].available
    assert not info.runtimes["kata-clh"].available
    assert "install" in info.runtimes["kata-clh"].reason


async def test_a_runtime_that_the_engine_lacks_is_named_with_what_it_has_and_the_remedy(
    engine: Engine, started: Start
) -> None:
    with pytest.raises(StartupError, match=r'"kata-clh" needs the OCI runtime "kata-clh".*It has: .*runc.*install'):
        await started(engine.options("kata-clh"))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # docker-py: sockets that did not connect
async def test_an_engine_that_does_not_answer_is_named_with_the_remedy(engine: Engine, started: Start) -> None:
    options = engine.options(docker_host="unix:///nowhere/docker.sock")
    with pytest.raises(StartupError, match=r"unix:///nowhere/docker\.sock.*DOCKER_HOST"):
        await started(options)


async def test_an_apparmor_profile_that_would_be_ignored_is_refused(engine: Engine, started: Start) -> None:
    if any("apparmor" in option for option in engine.client.info()["SecurityOptions"]):
        pytest.skip("this engine's host enforces AppArmor")
    with pytest.raises(StartupError, match="apparmor_profile"):
        await started(engine.options(apparmor="sandbox"))


# Plumbing: "kata-runtime" on the private engine is runc under another name, since no Kata is here. It proves that the
# configured name reaches the engine, and that start() does not take the name's word for it.


async def test_plumbing_a_plan_for_kata_runs_under_the_runtime_of_that_name(
    private_engine: tuple[PrivateEngine, Engine], started: Start
) -> None:
    _, engine = private_engine
    options = engine.options()
    driver: DockerDriver = await started(options)
    kata = engine.options("kata-qemu", instance=options.instance)
    plan = plan_for(kata)
    await driver.create(plan, unheard)
    assert engine.inspect(plan.id)["HostConfig"]["Runtime"] == "kata-runtime"


async def test_plumbing_a_kata_that_shares_the_hosts_kernel_is_refused(
    private_engine: tuple[PrivateEngine, Engine], started: Start
) -> None:
    _, engine = private_engine
    options = engine.options("kata-qemu")
    release = engine.client.info()["KernelVersion"]
    with pytest.raises(StartupError, match=f"kata-runtime.*does not isolate.*{release}.*no VM"):
        await started(options)
    assert engine.client.containers(all=True) == []


async def test_plumbing_a_gvisor_that_is_something_else_is_refused(
    private_engine: tuple[PrivateEngine, Engine], started: Start
) -> None:
    _, engine = private_engine
    with pytest.raises(StartupError, match=r"does not isolate.*not gVisor's"):
        await started(engine.options("gvisor", oci_runtime="kata-runtime"))


# The probe


@pytest.mark.parametrize(("arch", "compiler"), [("amd64", "x86_64-linux-gnu-gcc"), ("arm64", "aarch64-linux-gnu-gcc")])
def test_the_committed_probe_is_what_its_source_builds(tmp_path: Path, arch: str, compiler: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    if version != "12.2.0":
        pytest.skip(f"{compiler} is {version}; the committed probe is of Debian 12's 12.2.0")
    subprocess.run(["sh", PROBE / "build", arch, tmp_path / "probe"], check=True)
    assert (tmp_path / "probe").read_bytes() == (PROBE / f"probe-{arch}").read_bytes()
