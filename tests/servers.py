"""Real servers of the fleet, each private to the tests: PostgreSQL, Redis, RabbitMQ and S3 (Ceph).

A server runs on free ports of the loopback in a temporary folder, and ends with its `with`. It can be killed and
started again at the same address, and frozen, which is how a broken machine looks from outside. The fixtures skip,
with the reason, where a server is not installed (`tools/servers.sh` installs them); with REQUIRE_SERVICES=1 they fail.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import httpx2
import psutil
import pytest

START_SECONDS = 60
END_SECONDS = 20
CEPH = Path(__file__).parent.parent / ".cache" / "servers" / "ceph"
INSTALL = "sh tools/servers.sh installs it"


class Server:
    """A server in a folder of its own; begins with `start`, at the latest ends with the `with`."""

    NAME: ClassVar[str]

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stenograf-"))
        self.port = free_port()
        # Characters that an address must have escaped: the product meets such passwords.
        self.password = f"p@ss/w:rd?{secrets.token_hex(8)}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._tree: list[psutil.Process] = []
        self._prepared = False

    @classmethod
    def missing(cls) -> str:
        """What is needed and not here, for a person; empty when the server can be run."""
        raise NotImplementedError

    @property
    def log(self) -> str:
        """The end of what its processes wrote."""
        written = [f"{file.name}:\n{file.read_text('utf-8', 'replace')[-3000:]}" for file in self.folder.glob("*.log")]
        return "\n".join(written) or "(nothing logged)"

    def start(self) -> Self:
        """Run it, for the first time or after `kill` or `stop`, and wait until it answers."""
        assert not self._processes, f"{self.NAME} runs already"
        if not self._prepared:
            self._prepare()
            self._prepared = True
        self._run()
        self._until_answers()
        return self

    def stop(self) -> None:
        """End it in order; its data stays."""
        for process in reversed(self._processes):
            with suppress(subprocess.TimeoutExpired):
                process.send_signal(self._ending())
                process.wait(END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End all of its processes at once, as a power cut would."""
        self._signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(self._tree, END_SECONDS)
        assert not alive, f"{self.NAME} outlived SIGKILL: {alive}"
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def freeze(self) -> None:
        """Let it hold its connections and answer nothing, until `wake`."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.wake()
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self) -> None:
        """Ask it something by its own protocol; raises any exception where it does not answer within 2 seconds."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Write what it needs before its first start."""

    def _run(self) -> None:
        raise NotImplementedError

    def _ending(self) -> signal.Signals:
        return signal.SIGTERM

    def _spawn(self, name: str, *command: object, **options: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for pytest
                **options,
            )
        self._processes.append(process)

    def _call(self, *command: object, **options: Any) -> None:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=START_SECONDS,
            **options,
        )
        assert done.returncode == 0, f"{command[0]}: {done.stderr.decode(errors='replace')[-3000:]}\n{self.log}"

    def _signal(self, number: signal.Signals) -> None:
        """Send it to every process, parents first: one that is stopped or dead starts no more children."""
        self._tree = []
        for process in self._processes:
            if process.poll() is not None:
                continue
            waiting = [psutil.Process(process.pid)]
            while waiting:
                member = waiting.pop()
                with suppress(psutil.NoSuchProcess):
                    children = member.children()
                    if number == signal.SIGKILL:  # the children of a dead one are found no more
                        member.suspend()
                        children = member.children()
                    elif number == signal.SIGSTOP:
                        member.send_signal(number)
                        children = member.children()
                    self._tree.append(member)
                    waiting += children
        if number != signal.SIGSTOP:
            for member in self._tree:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(number)

    def _until_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            ended = [process.args for process in self._processes if process.poll() is not None]
            assert not ended, f"{self.NAME} ended while it started ({ended}):\n{self.log}"
            try:
                self.answers()
            except Exception as problem:  # each protocol has its own
                late = time.monotonic() > deadline
                assert not late, f"{self.NAME} does not answer after {START_SECONDS} s: {problem!r}\n{self.log}"
                time.sleep(0.02)
            else:
                return


class Postgres(Server):
    """PostgreSQL with a role and a database `stenograf`; `fsync=False` for tests that kill nothing."""

    NAME = "PostgreSQL"

    def __init__(self, *, fsync: bool = True) -> None:
        super().__init__()
        self._fsync = fsync
        # It refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}

    @classmethod
    def missing(cls) -> str:
        if not _postgres_program("postgres"):
            return f"PostgreSQL is not installed; {INSTALL}"
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "there is no user postgres to run PostgreSQL as" if os.geteuid() == 0 else ""
        return ""

    @property
    def url(self) -> str:
        return self._address("stenograf")

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of a fresh, empty database; it is dropped at the end, with those who are connected."""
        name = f"test_{secrets.token_hex(6)}"
        self._do(f"CREATE DATABASE {name}")
        try:
            yield self._address(name)
        finally:
            self._do(f"DROP DATABASE {name} WITH (FORCE)")

    def answers(self) -> None:
        self._do("SELECT 1")

    def _do(self, statement: str, *, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(self._address(database), connect_timeout=2, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _address(self, database: str) -> str:
        return f"postgresql://stenograf:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{database}"

    def _ending(self) -> signal.Signals:
        return signal.SIGINT  # do not wait for those who are connected

    def _prepare(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self._user:
            for path in (self.folder, secret):
                shutil.chown(path, "postgres", "postgres")
        options = ("-U", "stenograf", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale")
        program = _postgres_program("initdb")
        self._call(program, "-D", self.folder / "data", *options, "--no-sync", **self._user)

    def _run(self) -> None:
        wanted = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "32MB"}
        wanted["fsync"] = "on" if self._fsync else "off"
        options = [word for name, value in wanted.items() for word in ("-c", f"{name}={value}")]
        program = _postgres_program("postgres")
        self._spawn("postgres", program, "-D", self.folder / "data", "-p", self.port, *options, **self._user)

    def _until_answers(self) -> None:
        import psycopg

        super()._until_answers()
        with suppress(psycopg.errors.DuplicateDatabase):
            self._do("CREATE DATABASE stenograf")


class Redis(Server):
    """Redis that keeps nothing: it is empty after every start."""

    NAME = "Redis"

    @classmethod
    def missing(cls) -> str:
        return "" if _program("redis-server") else f"Redis is not installed; {INSTALL}"

    @property
    def url(self) -> str:
        return f"redis://:{quote(self.password, safe='')}@127.0.0.1:{self.port}/0"

    def answers(self) -> None:
        from redis import Redis as Client
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        once = Retry(NoBackoff(), 0)
        with Client.from_url(self.url, socket_timeout=1, socket_connect_timeout=1, retry=once) as client:
            assert client.ping()

    def _prepare(self) -> None:
        lines = f"port {self.port}", "bind 127.0.0.1", 'save ""', "appendonly no", f'requirepass "{self.password}"'
        (self.folder / "redis.conf").write_text("\n".join(lines) + "\n")

    def _run(self) -> None:
        self._spawn("redis", _program("redis-server"), self.folder / "redis.conf")


class RabbitMQ(Server):
    """RabbitMQ with a user `stenograf`; its durable queues outlive a kill. It takes about 5 seconds to start."""

    NAME = "RabbitMQ"

    def __init__(self) -> None:
        super().__init__()
        self._epmd_port, self._peer_port = free_port(), free_port()

    @classmethod
    def missing(cls) -> str:
        found = RABBITMQ.exists() and _program("epmd")
        return "" if found else f"RabbitMQ is not installed; {INSTALL}"

    @property
    def url(self) -> str:
        return f"amqp://stenograf:{quote(self.password, safe='')}@127.0.0.1:{self.port}//"

    def answers(self) -> None:
        from amqp import Connection  # type: ignore[import-untyped]

        host, timeouts = f"127.0.0.1:{self.port}", {"connect_timeout": 1, "read_timeout": 1, "write_timeout": 1}
        with Connection(host, userid="stenograf", password=self.password, **timeouts) as connection:
            assert connection.connected

    def _prepare(self) -> None:
        lines = (
            "default_user = stenograf",
            f"default_pass = {self.password}",
            "disk_free_limit.absolute = 10MB",
            "log.console.level = warning",
        )
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "plugins").write_text("[].\n")

    def _run(self) -> None:
        own = {
            "HOME": self.folder,  # Erlang keeps its cookie there
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self._epmd_port,
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "advanced.config",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_DIST_PORT": self._peer_port,
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": self.folder,
            "RABBITMQ_MNESIA_BASE": self.folder / "data",
            "RABBITMQ_NODENAME": f"stenograf-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            # One thread that never spins: the machine is small, and others are at work.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        environment = os.environ | {name: str(value) for name, value in own.items()}
        # In the foreground; else Erlang starts one that outlives it.
        self._spawn("epmd", _program("epmd"), "-address", "127.0.0.1", "-port", self._epmd_port, env=environment)
        self._spawn("rabbitmq", RABBITMQ, env=environment)


class HastyRabbitMQ(RabbitMQ):
    """It waits 3 s for an acknowledgement, then it closes the channel; others wait half an hour."""

    def _prepare(self) -> None:
        super()._prepare()
        # How often it looks is a minute, and no setting of rabbitmq.conf.
        told = "[{rabbit, [{consumer_timeout, 3000}, {channel_tick_interval, 1000}]}].\n"
        (self.folder / "advanced.config").write_text(told)


RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The wrapper in /usr/sbin changes the user and asks for folders of its own."""


class S3(Server):
    """The S3 of a Ceph cluster of one machine, with an empty bucket; it checks signatures."""

    NAME = "S3"

    def __init__(self) -> None:
        super().__init__()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.bucket = f"stenograf-{secrets.token_hex(4)}"
        self.access_key = secrets.token_hex(8)
        self.secret_key = self.password
        self.region = "us-east-1"
        self._monitor_port = free_port()

    @classmethod
    def missing(cls) -> str:
        return "" if (CEPH / "complete").exists() else f"Ceph is not in {CEPH.name} of .cache/servers; {INSTALL}"

    @property
    def settings(self) -> Mapping[str, str]:
        """What the product must be told, by the names of its settings."""
        keys = {"s3_access_key": self.access_key, "s3_secret_key": self.secret_key}
        place = {"s3_endpoint": self.endpoint, "s3_region": self.region}
        return {"storage_url": f"s3://{self.bucket}", **place, **keys}

    def client(self, **other: Any) -> Any:
        """An obstore client of the bucket; `other` replaces what it would be told."""
        from obstore.store import S3Store

        told = {"access_key_id": self.access_key, "secret_access_key": self.secret_key, "region": self.region}
        options: Any = {"allow_http": True, "timeout": "2s"}
        patience: Any = {"max_retries": 0}
        told |= {"endpoint": self.endpoint} | other
        return S3Store(self.bucket, client_options=options, retry_config=patience, **told)  # type: ignore[arg-type]

    def answers(self) -> None:
        import obstore

        # Its own bucket: it is made where it is not, and is left as it is where it is.
        made = httpx2.put(obstore.sign(self.client(), "PUT", "", timedelta(minutes=1)), timeout=2, trust_env=False)
        assert made.status_code == 200, made.text

    def _prepare(self) -> None:
        fsid, monitor = "5d3e1f2a-7c41-4f0e-9d3b-0a5b1c2d3e4f", f"[v2:127.0.0.1:{self._monitor_port}]"
        configuration = CLUSTER.format(
            fsid=fsid, monitor=monitor, folder=self.folder, classes=CEPH / "classes", port=self.port
        )
        (self.folder / "ceph.conf").write_text(configuration)
        for name in ("mon", "osd", "plugins"):
            (self.folder / name).mkdir()
        self._tool("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, "--enable-all-features", "monmap")
        self._tool("osdmaptool", "--createsimple", "1", "osdmap")
        self._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--osdmap", "osdmap")
        self._daemon("ceph-mon", "-i", "a")
        self._tool("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", fsid)
        self._disk()
        keys = "--access-key", self.access_key, "--secret-key", self.secret_key
        self._tool("radosgw-admin", "user", "create", "--uid=stenograf", "--display-name=stenograf", *keys)

    def _run(self) -> None:
        if not self._processes:  # else this is the first start, which needed them to make the user
            self._daemon("ceph-mon", "-i", "a")
            self._disk()
        self._daemon("radosgw")

    def _disk(self) -> None:
        """Run what keeps the data until it is active: whoever asks it earlier waits much longer than that."""
        log, active = self.folder / "ceph-osd.log", "booting -> active"
        before = log.read_text("utf-8", "replace").count(active) if log.exists() else 0
        self._daemon("ceph-osd", "-i", "0")
        deadline = time.monotonic() + START_SECONDS
        while log.read_text("utf-8", "replace").count(active) == before:
            assert self._processes[-1].poll() is None, f"ceph-osd ended:\n{self.log}"
            assert time.monotonic() < deadline, f"ceph-osd is not active after {START_SECONDS} s:\n{self.log}"
            time.sleep(0.05)

    def stop(self) -> None:
        self.kill()  # what is written is on the disk, and it takes seconds to say goodbye

    def _tool(self, program: str, *arguments: object) -> None:
        self._call(*_ceph_program(program), "-c", self.folder / "ceph.conf", *arguments)

    def _daemon(self, program: str, *arguments: object) -> None:
        self._spawn(program, *_ceph_program(program), "-f", "-c", self.folder / "ceph.conf", *arguments)


CLUSTER = """
[global]
fsid = {fsid}
mon_host = {monitor}
mon_initial_members = a
mon_data = {folder}/mon
osd_data = {folder}/osd
run_dir = {folder}
keyring = {folder}/keyring
admin_socket =
log_to_file = false
mon_cluster_log_to_file = false
log_to_stderr = true
err_to_stderr = true

public_addr = 127.0.0.1
ms_bind_msgr1 = false
# Among themselves on the loopback; the keys of S3 are another thing, and are asked for.
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc

# One copy, one disk, no waiting for votes of others.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_tick_interval = 1
mon_client_hunt_interval = 0.3
ms_max_backoff = 0.5
objecter_tick_interval = 1
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
rgw_rados_pool_pg_num_min = 1
osd_crush_chooseleaf_type = 0
osd_pool_default_read_lease_ratio = 0.05
osd_op_queue = wpq
osd_mclock_skip_benchmark = true
osd_objectstore = bluestore
bluestore_block_size = 4294967296
osd_memory_target = 939524096
osd_class_dir = {classes}
osd_erasure_code_plugins =
osd_extblkdev_plugins =
plugin_dir = {folder}/plugins

rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_thread_pool_size = 16
"""


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or ""


def _postgres_program(name: str) -> str:
    """The newest that Debian installed, else what is on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return str(found[-1]) if found else _program(name)


def _ceph_program(name: str) -> tuple[object, ...]:
    """Ceph is of a newer Debian than this may be, and brings its own C library."""
    return CEPH / "lib" / "ld.so", "--library-path", CEPH / "lib", CEPH / "bin" / name


def require(kind: type[Server]) -> None:
    """Skip the test, with the reason, where this server is not installed; with REQUIRE_SERVICES=1 it fails."""
    reason = kind.missing()
    if reason and os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """For all tests of a process; each takes a database of its own from it."""
    require(Postgres)
    with Postgres(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """For all tests of a process: use names of your own, and do not kill it."""
    require(Redis)
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """For all tests of a process: use names of your own, and do not kill it."""
    require(RabbitMQ)
    with RabbitMQ() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """For all tests of a process: use folders of your own, and do not kill it."""
    require(S3)
    with S3() as server:
        yield server
